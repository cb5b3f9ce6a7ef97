"""Zero-shot takes the head that the backbone offers, and says what else to do where there is
none.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from bench.errors import UsageError
from bench.method import Traits
from bench.methods.zero_shot import ZeroShot

from support.towers import CONV, VIT, TinyTask


def test_the_first_head_that_is_offered() -> None:
    assert ZeroShot().bind(VIT).head_init == "zero-shot"
    assert ZeroShot().bind(CONV).head_init == "native"
    both = Traits(text=True, native=True, layout="vit")
    assert ZeroShot().bind(both).head_init == "zero-shot"
    assert ZeroShot(head_init="native").bind(both).head_init == "native"


def test_without_a_head_linear_probe_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        ZeroShot().bind(Traits(text=False, native=False, layout="conv"))
    assert "linear-probe" in caught.value.fix


def test_a_head_that_is_not_there_names_the_one_that_is() -> None:
    with pytest.raises(UsageError) as caught:
        ZeroShot(head_init="native").bind(VIT)
    assert "--set head_init=zero-shot" in caught.value.fix


def test_nothing_is_trained() -> None:
    task = TinyTask()
    ZeroShot().bind(VIT).fit(cast(Any, task))
    assert task.started == ["zero-shot"]
