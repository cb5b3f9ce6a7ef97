"""Check that a method or a suite keeps the contract: what `bench check` runs, for your own tests.

    import pytest
    from bench.testing import method_checks

    @pytest.mark.parametrize("check", method_checks("./my_method.py"), ids=str)
    def test_contract(check):
        check()

Each check is a test of its own. A failed one raises; one that has nothing to check is skipped,
under pytest and unittest alike. `check_method` and `check_suite` run all checks in one call.
"""

from __future__ import annotations

from pathlib import Path

from .check import Check, CheckResult, NotApplicable
from .method_contract import IMAGES, MethodChecks
from .suite_contract import SuiteChecks

__all__ = [
    "Check",
    "CheckResult",
    "NotApplicable",
    "check_method",
    "check_suite",
    "method_checks",
    "suite_checks",
]


def method_checks(
    method: str,
    *,
    suite: str | Path | None = None,
    backbone: str | None = None,
    data_root: Path | None = None,
    images: int = IMAGES,
) -> list[Check]:
    """Return the checks of a method, which share one suite and one first fit.

    Args:
        method: name of an installed method, or a `.py` file.
        suite: name or card to try it on; the embedded suite by default.
        backbone: name; the suite's by default.
        data_root: folder that holds the datasets.
        images: largest number of images of each split.

    Raises:
        UsageError: there is no such method, or its file fails to import.
    """
    return MethodChecks(
        method,
        suite=None if suite is None else str(suite),
        backbone=backbone,
        data_root=data_root,
        images=images,
    ).checks()


def suite_checks(
    suite: str | Path, *, size: int = 32, data_root: Path | None = None
) -> list[Check]:
    """Return the checks of a suite's card and its images.

    Args:
        suite: name or card.
        size: side in pixels at which images are decoded.
        data_root: folder that holds the datasets.
    """
    from ..data.pixels.decoder import Pixels

    pixels = Pixels(size=size, resize=size)
    return SuiteChecks(str(suite), pixels=pixels, data_root=data_root).checks()


def check_method(
    method: str,
    *,
    suite: str | Path | None = None,
    backbone: str | None = None,
    data_root: Path | None = None,
    images: int = IMAGES,
) -> None:
    """Run the checks of a method. The arguments are those of `method_checks`.

    Raises:
        AssertionError: a check failed; the message names each one.
    """
    _run(
        method,
        method_checks(method, suite=suite, backbone=backbone, data_root=data_root, images=images),
    )


def check_suite(suite: str | Path, *, size: int = 32, data_root: Path | None = None) -> None:
    """Run the checks of a suite. The arguments are those of `suite_checks`.

    Raises:
        AssertionError: a check failed; the message names each one.
    """
    _run(str(suite), suite_checks(suite, size=size, data_root=data_root))


def _run(name: str, checks: list[Check]) -> None:
    results = [check.run() for check in checks]
    failed = [f"{result.check}: {result.detail}" for result in results if result.status == "fail"]
    if failed:
        raise AssertionError("\n".join([f"{name} does not keep the contract:", *failed]))
