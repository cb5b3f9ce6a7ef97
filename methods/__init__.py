"""The built-in methods, one file each; `cam` and `masking` are shared by the masking methods."""
