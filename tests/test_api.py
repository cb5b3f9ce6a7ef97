"""The Python interface as a notebook uses it: paths and numbers as one writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bench


def test_paths_are_text_and_seeds_a_number(tiny_suite: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    records = bench.run("linear-probe", suite=str(tiny_suite), seeds=2, store=store)
    assert [record.seed for record in records] == [0, 1]
    runs = bench.load_runs(store)
    assert sorted(runs["seed"]) == [0, 1]
    assert {"score.id-test", "score.inverted"} <= set(runs.columns)


def test_a_number_of_seeds_in_a_file_means_what_the_option_means(tmp_path: Path) -> None:
    from bench.run_spec import run_spec

    (tmp_path / "run.toml").write_text("seeds = 3")
    spec = run_spec({"methods": ("linear-probe",)}, tmp_path / "run.toml")
    assert spec.seeds == (0, 1, 2)
    assert bench.RunSpec(methods=("linear-probe",), seeds=[4, 5]).seeds == (4, 5)
    with pytest.raises(bench.UsageError, match="seeds"):
        run_spec({"methods": ("linear-probe",), "seeds": 0})


def test_weights_are_evaluated_by_the_fields_of_a_spec(tiny_suite: Path, tmp_path: Path) -> None:
    store, where = str(tmp_path / "store"), {"suite": str(tiny_suite)}
    (run,) = bench.run("linear-probe", store=store, **where)
    fit = f"{store}/fits/{run.fit_id}"
    record = bench.evaluate(fit, store=store, name="mine", **where)
    assert record.metrics["id-test"].score == run.metrics["id-test"].score
    assert bench.evaluate(fit, store=store, **where).label == run.fit_id
    with pytest.raises(bench.UsageError, match="not both"):
        bench.evaluate(fit, bench.RunSpec(methods=("x",), **where), suite="pacs")
    with pytest.raises(bench.MissingPrerequisite):
        bench.evaluate(f"{store}{os.sep}nowhere.pt", store=store, **where)


def test_what_users_need_is_exported_and_the_version_is_the_package_s() -> None:
    from importlib.metadata import version

    assert bench.__version__ == version("shiftbench")
    for name in bench.__all__:
        assert getattr(bench, name) is not None
    assert bench.Engine(threads=1).threads == 1
