"""Bring a data set to this machine: download, check, unpack."""
