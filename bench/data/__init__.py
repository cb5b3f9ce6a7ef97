"""From a suite's card to batches of pixels: sources, one index per folder, splits, and the caches
that make them fast.
"""
