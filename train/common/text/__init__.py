"""Text classification: labelled texts, their models, runs and reports."""
