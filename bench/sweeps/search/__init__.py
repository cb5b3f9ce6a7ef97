"""Hyper-parameter search on id-val: samplers, successive halving, and the trials of a method."""
