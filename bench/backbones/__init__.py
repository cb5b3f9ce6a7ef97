"""Backbones: pre-trained image towers (open_clip, timm, mini-clip), their text towers and the heads
that start on them.
"""
