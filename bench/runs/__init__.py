"""Execute one spec: the fit store, the run folder and its record."""
