"""Sweeps: many runs as one plan, a search with the same budget for every method, and the runners
that carry it out.
"""
