"""Every suite that ships keeps the contract of `bench check`, on its own layout in miniature."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.data.cards.inheritance import suite_names
from bench.testing import check_suite

from support.stand_ins import stand_in


@pytest.mark.slow
@pytest.mark.parametrize("name", suite_names())
def test_suite(name: str, tmp_path: Path) -> None:
    card, data_root = stand_in(name, tmp_path)
    check_suite(card, data_root=data_root, size=4)
