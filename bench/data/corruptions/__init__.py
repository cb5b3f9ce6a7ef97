"""The corruptions of ImageNet-C, and the parts of datasets that are made by them."""
