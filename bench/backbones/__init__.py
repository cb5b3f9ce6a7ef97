"""Pre-trained image towers with their text towers and heads: mini-clip, open_clip and timm."""
