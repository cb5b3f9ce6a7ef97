"""One pass over the data for many classifiers, and the metrics."""
