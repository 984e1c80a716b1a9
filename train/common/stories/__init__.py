"""Questions about short stories, in the manner of bAbI."""
