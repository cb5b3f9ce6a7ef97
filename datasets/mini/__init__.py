"""A rendered world with the roles of ImageNet and its shifts, made in seconds and downloaded from
nowhere.
"""

from .world import MiniWorld, Rendered

__all__ = ["MiniWorld", "Rendered"]
