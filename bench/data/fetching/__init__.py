"""Download, check and unpack data sets."""
