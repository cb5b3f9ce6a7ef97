"""The built-in methods, one file each; `cam.py` and `masking.py` hold what the masking methods are
made of.
"""
