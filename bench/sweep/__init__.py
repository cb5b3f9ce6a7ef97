"""Choosing parameters by a search with the same budget for every method."""
