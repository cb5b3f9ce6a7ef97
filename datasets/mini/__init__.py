"""The mini world: rendered images in the roles of ImageNet and its shifts, made in seconds."""

from .world import MiniWorld, Rendered

__all__ = ["MiniWorld", "Rendered"]
