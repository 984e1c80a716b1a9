"""Attention of one or a few new queries to a long cache of keys and values."""
