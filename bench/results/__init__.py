"""Results on disk: run records, predictions, provenance, and the store of fits and runs."""
