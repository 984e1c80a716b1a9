"""Repeatable measurements; nothing in the library imports them."""
