"""The commands that show and tidy: show, methods, suites, backbones, clean, doctor."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.cli import build_app
from bench.configure import load_method
from bench.errors import NothingMatched, UsageError
from bench.plugins import trust
from bench.results.record import RunRecord, SplitMetrics
from bench.results.store import FitRecord, Store
from bench.storage.lease import Lease


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def rows(result: Result, table: int = 0) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["tables"][table]["rows"]
    return found


def run_record(fit_id: str, seed: int = 0, **fields: Any) -> RunRecord:
    metrics = SplitMetrics(
        images=10, score=0.5, accuracy=0.5, class_mean=0.5, macro_f1=0.5, nll=1, ece=0.1, brier=0.4
    )
    return RunRecord.model_validate(
        {
            "status": "done",
            "method": {"name": "wise-ft", "version": 1, "source": "", "parameters": {"alpha": 0.5}},
            "label": "wise-ft",
            "backbone": "tiny",
            "backbone_sha256": "b",
            "suite": "pets",
            "seed": seed,
            "fit_id": fit_id,
            "eval_id": f"e{fit_id}",
            "metrics": {"id-test": metrics},
            "shifts": ["sketch"],
            "holes": {"sketch": "not downloaded"},
            **fields,
        }
    )


def add_fit(store: Store, fit_id: str, nested: list[str] | None = None) -> Path:
    folder = store.fit_dir(fit_id)
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"0" * 1000)
    record = FitRecord(
        fit_id=fit_id,
        identity={"method": {"name": "full-finetune"}, "seed": 0},
        weights="weights.safetensors",
        weights_sha256="",
        normalize=True,
        seconds=1,
        nested=nested or [],
        total_seconds=1,
    )
    (folder / "fit.json").write_text(record.model_dump_json(), encoding="utf-8")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_show_finds_a_run_by_folder_prefix_and_name(store: Store) -> None:
    path = store.save_run(run_record("abc123"))
    for name in (str(path.parent), str(path), "abc1", "eabc", "wise-ft"):
        shown = bench("show", name, "--store", store.root)
        assert shown.exit_code == 0, shown.output
        assert "not downloaded" in shown.stdout
    found = json.loads(bench("show", "abc", "--store", store.root, "--format", "json").stdout)
    assert found["record"]["metrics"]["id-test"]["score"] == 0.5
    assert bench("show", "abc", "--store", store.root, "--format", "csv").stdout.startswith(
        "split,images,"
    )


def test_show_lists_the_candidates_of_an_ambiguous_name(store: Store) -> None:
    for seed in range(2):
        store.save_run(run_record(f"abc{seed}", seed))
    result = bench("show", "wise-ft", "--store", store.root)
    assert isinstance(result.exception, UsageError)
    assert "eabc0" in result.stderr
    assert "eabc1" in result.stderr
    assert bench("show", "wise-ft", "--seed", "1", "--store", store.root).exit_code == 0
    assert isinstance(bench("show", "nothing", "--store", store.root).exception, NothingMatched)


def test_the_exact_name_of_a_row_wins_over_its_variants(store: Store) -> None:
    store.save_run(run_record("abc"))
    store.save_run(run_record("def", label="wise-ft (alpha=0.3)"))
    for name, fit_id in (("wise-ft", "abc"), ("wise-ft (alpha=0.3)", "def")):
        shown = bench("show", name, "--store", store.root, "--format", "json")
        assert json.loads(shown.stdout)["record"]["fit_id"] == fit_id


def test_show_begins_with_scores_and_leaves_hashes_to_verbose(store: Store) -> None:
    store.save_run(run_record("abc"))
    shown = bench("show", "abc", "--store", store.root).stdout
    assert shown.startswith("metrics\nsplit ")
    assert shown.index("\nrun\n") < shown.index("\nmethod\n")
    assert "backbone_sha256" not in shown
    everything = bench("show", "abc", "--store", store.root, "--verbose").stdout
    assert everything.startswith(shown.rstrip("\n"))
    assert "backbone_sha256" in everything.removeprefix(shown.rstrip("\n"))


def test_show_tells_a_whole_error(store: Store) -> None:
    store.save_run(
        run_record(
            "abc",
            status="failed",
            error="Diverged: not finite\n  where: step 3\n  fix: a smaller lr",
        )
    )
    shown = bench("show", "abc", "--store", store.root).stdout
    assert "Diverged: not finite" in shown
    assert "fix: a smaller lr" in shown


def test_methods_are_listed_with_their_papers() -> None:
    found = {row["name"]: row for row in rows(bench("methods", "--format", "json"))}
    assert found["wise-ft"]["paper"].startswith("https://")
    assert found["wise-ft"]["summary"]
    assert rows(bench("methods", "list", "--format", "json")) == list(found.values())


def test_a_methods_parameters_are_shown_with_bounds_and_search_space() -> None:
    found = {
        row["parameter"]: row
        for row in rows(bench("methods", "show", "full-finetune", "--format", "json"), 1)
    }
    assert found["lr"]["search"] == "0.2 to 5 times the suite's value (log)"
    assert found["lr"]["bounds"] == "> 0"
    assert found["epochs"]["default"] == "10"
    assert found["schedule"]["type"] == "warmup-cosine | one-cycle"
    assert isinstance(bench("methods", "show", "wise-tf").exception, UsageError)


def test_the_scaffold_is_a_short_working_method(tmp_path: Path) -> None:
    file = tmp_path / "my_robust_method.py"
    assert bench("methods", "new", file).exit_code == 0
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 25
    assert max(map(len, text.splitlines())) <= 100
    trust(str(file))
    method = load_method(str(file))
    assert (method.name, method.__name__) == ("my-robust-method", "MyRobustMethod")
    assert method.search_space()["smoothing"].high == 0.3
    assert method().identity()["parameters"]["smoothing"] == 0.1
    assert rows(bench("methods", "show", file, "--format", "json"))


def test_the_scaffold_overwrites_nothing_and_needs_a_name_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("precious", encoding="utf-8")
    for path in (
        file,
        tmp_path / "wise_ft.py",
        tmp_path / "1.py",
        tmp_path / "mine.txt",
        tmp_path / "no" / "folder.py",
    ):
        assert isinstance(bench("methods", "new", path).exception, UsageError), path
    assert file.read_text(encoding="utf-8") == "precious"
    assert os.listdir(tmp_path) == ["mine.py"]


def test_suites_say_whether_their_data_is_here(tiny_suite: Path, tmp_path: Path) -> None:
    found = {
        row["name"]: row
        for row in rows(bench("suites", "--data-root", tmp_path, "--format", "json"))
    }
    assert found["pacs"]["data"] == "missing"
    assert found["pacs"]["classes"] == 7
    shown = bench("suites", "show", tiny_suite, "--format", "json")
    assert str(tiny_suite.parent / "images") in {row["value"] for row in rows(shown)}
    splits = {row["split"]: row for row in rows(shown, 1)}
    assert list(splits) == ["train", "id-val", "id-test", "inverted", "noisy"]
    assert splits["inverted"]["factors"] == "style changed"
    assert splits["noisy"]["role"] == "shift, not in the OOD average"


def test_backbones_explain_their_names_without_a_network() -> None:
    result = bench("backbones", "--format", "json")
    assert {"timm", "open_clip", "mini-clip"} <= {row["kind"] for row in rows(result)}
    assert any(row["name"] == "timm:NAME" for row in rows(result, 1))


def test_clean_shows_and_frees_only_what_is_requested(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "pixels" / "k"
    cached.mkdir(parents=True)
    (cached / "pixels.npy").write_bytes(b"0" * 10)
    inner, used, unused = (
        add_fit(store, "inner"),
        add_fit(store, "used", ["inner"]),
        add_fit(store, "unused"),
    )
    store.save_run(run_record("used"))
    broken_off = store.fit_dir("brokenoff") / "checkpoint"
    broken_off.mkdir(parents=True)
    (broken_off / "000001.safetensors").write_bytes(b"0" * 500)

    def clean(*options: str) -> dict[str, dict[str, Any]]:
        return {
            Path(row["path"]).name: row
            for row in rows(bench("clean", "--store", store.root, "--format", "json", *options))
        }

    whole = clean()
    assert {name: whole[name]["used_by"] for name in ("inner", "used", "unused")} == {
        "inner": 1,
        "used": 1,
        "unused": 0,
    }
    assert set(clean("--unused-fits")) == {"unused", "brokenoff"}
    assert unused.exists()
    assert set(clean("--unused-fits", "--older-than", "1", "--yes")) == set()
    assert set(clean("--checkpoints", "--yes")) == {"checkpoint"}
    assert not broken_off.exists()
    assert set(clean("--unused-fits", "--cache", "--yes")) == {"unused", "brokenoff", "k"}
    assert inner.exists()
    assert used.exists()
    assert not unused.exists()
    assert not cached.exists()
    assert set(clean("--used-fits", "--yes")) == {"inner", "used"}
    assert len(list(store.records())) == 1


def test_clean_never_touches_a_fit_that_is_being_trained(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    folder = add_fit(store, "live")
    with Lease(folder):
        result = bench(
            "clean",
            "--store",
            store.root,
            "--unused-fits",
            "--used-fits",
            "--checkpoints",
            "--yes",
            "--format",
            "json",
        )
        assert rows(result) == []
        assert (folder / "weights.safetensors").exists()
    assert (
        len(
            rows(
                bench("clean", "--store", store.root, "--unused-fits", "--yes", "--format", "json")
            )
        )
        == 1
    )
    assert not folder.exists()


def test_doctor_reports_and_fails_only_for_what_is_broken(store: Store, tmp_path: Path) -> None:
    found = {
        row["check"]: row
        for row in rows(bench("doctor", "--store", store.root, "--format", "json"))
    }
    assert found["torch"]["state"] == "ok"
    assert found["store"]["state"] == "ok"
    assert not store.root.exists()
    result = bench(
        "doctor", "--store", store.root, "--data-root", tmp_path / "nowhere", "--format", "json"
    )
    assert result.exit_code == 1
    broken = [
        row for row in json.loads(result.stdout)["tables"][0]["rows"] if row["state"] == "broken"
    ]
    assert [row["check"] for row in broken] == ["data root"]
