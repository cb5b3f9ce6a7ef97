"""The corruptions of ImageNet-C, and the parts of data sets that are made by them."""
