"""Questions whose answers are pieces of a text."""
