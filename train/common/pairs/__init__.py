"""Tasks that write a text for a text: pairs of texts, models that write, scores and reports."""
