"""Download, check and unpack datasets."""
