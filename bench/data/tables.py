"""Parts of data sets that a table lists, or that are arrays of pixels."""
