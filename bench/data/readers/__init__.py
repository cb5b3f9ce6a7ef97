"""Readers for the layouts in which datasets are commonly stored on disk, one module each."""
