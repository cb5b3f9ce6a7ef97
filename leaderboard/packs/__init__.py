"""Runs in one file for others, and the checks before runs of others enter a store."""
