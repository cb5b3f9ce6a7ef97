"""One check of the contract, and its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from unittest import SkipTest

from ..stopping import foreign


@dataclass(frozen=True)
class CheckResult:
    """The result of a check."""

    check: str
    status: Literal["pass", "fail", "skip"]
    detail: str = ""
    seconds: float = 0.0


class NotApplicable(SkipTest):
    """A check has nothing to look at; the message is the reason."""


@dataclass(frozen=True)
class Check:
    """One requirement of the contract.

    Attributes:
        name: the requirement, in words.
        slow: whether it takes several seconds whatever the method is, such as starting processes.
    """

    name: str
    function: Callable[[], str | None]
    slow: bool = False

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        """Run the check as a test.

        Raises:
            NotApplicable: there is nothing to check.
            Exception: whatever the plug-in raised, or an AssertionError that says what is wrong.
        """
        with foreign():
            self.function()

    def run(self) -> CheckResult:
        """Run the check and return its result, whatever the plug-in does."""
        start = time.monotonic()
        status: Literal["pass", "fail", "skip"]
        try:
            with foreign():
                status, detail = "pass", self.function() or ""
        except NotApplicable as reason:
            status, detail = "skip", str(reason)
        # A plug-in may raise anything, and each error is a finding, not an end of the program.
        except Exception as error:
            status, detail = "fail", f"{type(error).__name__}: {error}"
        return CheckResult(self.name, status, detail, time.monotonic() - start)
