"""Decode the bytes of images into the pixels that a backbone is given."""
