"""The choice of hyper-parameters on id-val: samplers, successive halving, and the trials of a
sweep.
"""
