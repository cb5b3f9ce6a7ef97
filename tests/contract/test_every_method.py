"""Every method that ships keeps the contract of `bench check`, on a suite of 16 training images."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.configure import method_names
from bench.testing import check_method, method_checks

from support.suites import make_suite

TOWERS = {"vit": "mini-clip", "conv": "timm:test_efficientnet@random?size=32"}
#: What runs on one kind of tower alone.
NEEDS_TEXT = {"zero-shot"}


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a suite of 17 training images, of which 16 are used."""
    return make_suite(tmp_path_factory.mktemp("sixteen"), per_class=11)


def cases(tower: str) -> list[str]:
    return [name for name in method_names() if tower == "vit" or name not in NEEDS_TEXT]


@pytest.mark.slow
@pytest.mark.parametrize("name", cases("vit"))
def test_method(name: str, sixteen: Path) -> None:
    checks = method_checks(name, suite=sixteen, backbone=TOWERS["vit"], images=16)
    results = [check.run() for check in checks if not check.slow]
    assert [result for result in results if result.status == "fail"] == []
    assert sum(result.status == "pass" for result in results) >= 6


def test_a_method_on_a_convolutional_tower(sixteen: Path) -> None:
    checks = method_checks(
        "masked-counterfactual", suite=sixteen, backbone=TOWERS["conv"], images=16
    )
    assert {check.run().status for check in checks if not check.slow} == {"pass"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tower", "name"), [(tower, name) for tower in TOWERS for name in cases(tower)]
)
def test_method_on_both_towers_and_two_devices(tower: str, name: str, sixteen: Path) -> None:
    check_method(name, suite=sixteen, backbone=TOWERS[tower])
