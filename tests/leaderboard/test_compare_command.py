"""`bench compare` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bench.cli import build_app
from bench.errors import NothingMatched, UsageError
from bench.results.record import RunRecord
from bench.results.store import Store

Make = Callable[..., RunRecord]
Predict = Callable[..., None]


def compare(store: Store, *options: str) -> Result:
    return CliRunner().invoke(build_app(), ["compare", *options, "--store", str(store.root)])


def failure(result: Result, kind: type[Any]) -> Any:
    assert isinstance(result.exception, kind), result.output
    return result.exception


@pytest.fixture
def filled(make: Make, predict: Predict, store: Store) -> Store:
    for name, rate in (("a", 0.9), ("b", 0.6)):
        for seed in range(2):
            record = make(name, seed, label=f"{name} (lr=0.1)")
            for number, split in enumerate(("id-test", "cartoon", "sketch")):
                predict(
                    record,
                    split,
                    (np.random.default_rng([seed, number, ord(name)]).random(100) < rate).tolist(),
                )
    return store


@pytest.mark.parametrize("names", [("a", "b"), ("a (lr=0.1)", "b (lr=0.1)"), ("fit-a", "fit-b-1")])
def test_rows_are_named_as_on_the_board(filled: Store, names: tuple[str, str]) -> None:
    first, models, method, tests, alike = json.loads(
        compare(filled, *names, "--format", "json").stdout
    )["tables"]
    assert [row["question"] for row in first["rows"]] == ["these trained models", "the method"]
    assert first["rows"][0]["verdict"].startswith(
        "better on 2 of 2 shifts; ID: better; mean difference +"
    )
    assert [row["about"] for row in models["rows"]] == ["id-test", "cartoon", "sketch", "OOD"]
    assert all(row["low"] > 0 for row in models["rows"])
    assert all(row["units"] == 2 for row in method["rows"])
    assert {"seed_0_only_a", "seed_1_p_holm"} <= set(tests["rows"][0])
    assert len(alike["rows"]) == 3


@pytest.mark.parametrize("form", ["table", "md", "csv", "latex"])
def test_every_format_says_the_verdict(filled: Store, form: str) -> None:
    assert "better on 2 of 2 shifts" in compare(filled, "a", "b", "--format", form).stdout


def test_an_unknown_row_is_reported_with_what_there_is(filled: Store) -> None:
    error = failure(compare(filled, "a", "c"), NothingMatched)
    assert error.exit_code == 5
    assert "`c`" in error.what
    assert "b (lr=0.1)" in error.fix


def test_a_row_with_itself_is_refused(filled: Store) -> None:
    assert failure(compare(filled, "a", "a (lr=0.1)"), UsageError).exit_code == 2


def test_an_ambiguous_name_is_refused_with_the_candidates(filled: Store, make: Make) -> None:
    other = make("a", label="a (lr=0.2)", fit_id="else", eval_id="else")
    other.method = {**other.method, "parameters": {"lr": 0.2}}
    filled.save_run(other)
    result = compare(filled, "a", "b")
    error = failure(result, UsageError)
    assert "means 2 rows" in error.what
    assert "a (lr=0.1)" in result.stderr
    assert "a (lr=0.2)" in result.stderr


def test_rows_that_never_met_are_not_compared(filled: Store, make: Make) -> None:
    filled.save_run(make("c", suite="birds"))
    error = failure(compare(filled, "a", "c"), NothingMatched)
    assert "birds" in error.where
    assert "pets" in error.where
    filled.save_run(make("d", pixels="other"))
    assert "pixels" in failure(compare(filled, "a", "d"), NothingMatched).where


def test_trials_are_never_compared(make: Make, store: Store) -> None:
    store.save_run(make("a", limit=8))
    store.save_run(make("b", limit=8))
    assert failure(compare(store, "a", "b"), NothingMatched).exit_code == 5
