"""Facts of a message, whatever its sentence is."""

from __future__ import annotations


def states(text: str, *facts: object) -> bool:
    """Whether one line of `text` has all of these facts, in this order."""
    for line in text.splitlines():
        at = 0
        for fact in map(str, facts):
            at = line.find(fact, at)
            if at < 0:
                break
            at += len(fact)
        else:
            return True
    return False
