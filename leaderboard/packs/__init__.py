"""Export of runs to a file, and the checks before such runs are merged into a store."""
