"""The result of one check."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..stopping import foreign


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    check: str
    status: Literal["pass", "fail", "skip"]
    detail: str = ""
    seconds: float = 0.0


class NotApplicable(Exception):
    """Raised by a check that has nothing to look at, with the reason."""


def outcome_of(name: str, check: Callable[[], str | None]) -> Outcome:
    """Run a check: its return value is a remark, an exception is a failure, NotApplicable is a skip
    with its reason.
    """
    start = time.monotonic()
    try:
        with foreign():
            detail = check() or ""
        return Outcome(name, "pass", detail, time.monotonic() - start)
    except NotApplicable as reason:
        return Outcome(name, "skip", str(reason), time.monotonic() - start)
    except Exception as error:  # a plug-in may raise anything, and each is a finding
        return Outcome(name, "fail", f"{type(error).__name__}: {error}", time.monotonic() - start)
