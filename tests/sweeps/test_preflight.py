"""What a node says of itself before a sweep; the cluster's tests ask real nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.sweeps.ray.preflight import Answer, NodeQuery, _differences, inspect


@pytest.fixture
def ask(tmp_path: Path, tiny_suite: Path) -> Callable[..., Answer]:
    """Ask this machine about the tiny suite, in the words of a driver that wrote its mark into the
    store.
    """
    (tmp_path / "mark").write_text("token", encoding="utf-8")

    def ask(**other: object) -> Answer:
        right = {
            "places": ((str(tiny_suite), "timm:test_vit@random?size=32"),),
            "files": (),
            "store": tmp_path,
            "mark": "mark",
            "token": "token",
        }
        return inspect(NodeQuery(**{**right, **other}))  # type: ignore[arg-type]

    return ask


def test_a_node_in_order_has_no_problems_and_says_what_it_would_compute_with(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = ask()
    assert answer.problems == ()
    assert {
        "shiftbench",
        "torch",
        "ShiftBench's source",
        "the card of tiny",
        "the folders of tiny",
    } <= answer.facts.keys()
    assert answer.facts["the folders of tiny"] == "inverted, noisy, photo"
    assert not list(_differences(answer, ask()))
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


def test_a_store_of_the_same_name_that_is_another_is_found(ask: Callable[..., Answer]) -> None:
    assert "not the driver's" in " ".join(ask(token="of another run").problems)
    assert "share" in " ".join(ask(store=Path("/no/such/folder")).problems)


def test_missing_data_and_weights_are_named(
    ask: Callable[..., Answer], tiny_suite: Path, tmp_path: Path
) -> None:
    card = tmp_path / "moved.toml"
    card.write_bytes(tiny_suite.read_bytes())  # its images are not beside it
    assert "the images of Tiny generated shapes" in " ".join(
        ask(places=((str(card), "none"),)).problems
    )
    no_weights = ask(places=((str(tiny_suite), f"timm:test_vit@{tmp_path}/weights.pt"),)).problems
    assert "weights.pt" in " ".join(no_weights)


def test_gpus_that_torch_does_not_see_are_a_problem(ask: Callable[..., Answer]) -> None:
    assert "torch sees" in " ".join(ask(gpus=99).problems)


def test_a_full_disk_refuses_and_little_room_is_mentioned(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.sweeps.ray.preflight._TOO_LITTLE", 2**60)
    monkeypatch.setattr("bench.sweeps.ray.preflight._LITTLE", 2**60)
    assert "are free for the store" in " ".join(ask().problems)
    monkeypatch.setattr("bench.sweeps.ray.preflight._TOO_LITTLE", 0)
    answer = ask()
    assert answer.problems == ()
    assert "are free for the store" in " ".join(answer.notes)


def test_every_difference_is_named_with_both_values(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    method = tmp_path / "mine.py"
    method.write_text("old", encoding="utf-8")
    before = ask(files=(str(method),))
    method.write_text("new", encoding="utf-8")
    (difference,) = _differences(before, ask(files=(str(method),)))
    assert difference.startswith(f"the file {method} is ")
    assert f"but {before.facts[f'the file {method}']} on the driver" in difference
