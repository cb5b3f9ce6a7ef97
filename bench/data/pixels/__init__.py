"""From the bytes of an image to the pixels that a backbone is given, decoded once."""
