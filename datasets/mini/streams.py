"""Named random streams: the same words give the same numbers, whatever else was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(*words: str | int) -> np.random.Generator:
    """A generator that is a function of the words alone, e.g. `stream(seed, "sketch", "noise", chunk)`.

    Streams are counted out by name instead of in order, so that a new style, split or parameter leaves the draws of
    every other one as they were.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, words)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
