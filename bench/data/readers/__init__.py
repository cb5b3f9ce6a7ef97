"""Readers for the layouts in which data sets are commonly stored on disk, one module each."""
