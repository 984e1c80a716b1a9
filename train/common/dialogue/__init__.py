"""Dialogues of a user and a bot: to choose the next answer, or to write it."""
