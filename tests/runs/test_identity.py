"""What makes two fits or two evaluations the same, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.configure import build_method
from bench.engine import Engine
from bench.errors import MissingPrerequisite, UsageError
from bench.run_spec import RunSpec
from bench.runs.experiment import experiments

from support.runs import NAN, only_test_images, run


@pytest.mark.slow
def test_a_new_shift_trains_nothing(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    card = suite / "tiny.toml"
    (before,), _ = run("full-finetune", suite=card, store=tmp_path / "store")
    shutil.copytree(suite / "images" / "noisy", suite / "images" / "again")
    card.write_text(
        card.read_text().replace("[recipe]", '[[shifts]]\nname = "again"\npath = "again"\n[recipe]')
    )
    (after,), listener = run("full-finetune", suite=card, store=tmp_path / "store")
    assert listener.trained() == []
    assert after.fit_id == before.fit_id
    assert after.eval_id != before.eval_id
    assert after.metrics["again"].score == after.metrics["noisy"].score


@pytest.mark.slow
def test_a_changed_training_image_is_another_fit(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    (before,), _ = run("linear-probe", suite=suite / "tiny.toml", store=tmp_path / "store")
    moved = tmp_path / "elsewhere"
    suite.rename(moved)
    (same,), listener = run("linear-probe", suite=moved / "tiny.toml", store=tmp_path / "store")
    assert (same.fit_id, listener.trained()) == (
        before.fit_id,
        [],
    ), "another path is not another fit"
    first, second = sorted((moved / "images" / "photo" / "disc").glob("*.png"))[:2]
    shutil.copy(second, first)
    (after,), _ = run("linear-probe", suite=moved / "tiny.toml", store=tmp_path / "store")
    assert after.fit_id != before.fit_id


def test_identity_covers_what_it_should(tiny_suite: Path, tmp_path: Path) -> None:
    def fit_id(
        *, seed: int = 0, backbone: str | None = None, name: str = "full-finetune", **values: Any
    ) -> str:
        spec = RunSpec(methods=(name,), suite=str(tiny_suite), backbone=backbone, seeds=(seed,))
        (experiment,) = experiments(spec, store=tmp_path, engine=Engine(threads=1))
        return experiment.fit_id(build_method(name, values, experiment.setup.suite.card.recipe))

    usual = fit_id()
    others = [
        fit_id(seed=1),
        fit_id(lr=1e-4),
        fit_id(head_init="probe"),
        fit_id(backbone="timm:test_vit@random-7?size=32"),
        fit_id(name="wise-ft"),
        fit_id(name="wise-ft", **{"of.lr": 1e-4}),
    ]
    assert len({usual, *others}) == 1 + len(others)
    assert fit_id(lr=1e-3) == usual, "the recipe's value, said again, changes nothing"


@pytest.mark.slow
def test_the_probe_is_part_of_what_starts_from_it(tiny_suite: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    (one,), _ = run("lp-ft", suite=suite / "tiny.toml", store=tmp_path / "store")
    card = suite / "tiny.toml"
    card.write_text(card.read_text().replace("grid = 5", "grid = 2"))
    (other,), _ = run("lp-ft", suite=card, store=tmp_path / "store")
    assert one.fit_id != other.fit_id


def test_a_file_that_is_rewritten_at_once_is_read_anew(tmp_path: Path) -> None:
    from bench.configure import load_method
    from bench.plugins import trust

    path = tmp_path / "mine.py"
    trust(str(path))
    for value in ("0.1", "0.2"):
        path.write_text(NAN.replace('float("nan")', value).replace("nan-at-the-end", "mine"))
        method = load_method(str(path))
        assert value in Path(method.loss.__code__.co_filename).read_text()
        assert float(value) in [
            c
            for code in method.loss.__code__.co_consts
            if hasattr(code, "co_consts")
            for c in code.co_consts
        ]


def test_a_file_may_not_take_an_installed_name(tmp_path: Path) -> None:
    from bench.configure import load_method
    from bench.plugins import trust

    trust(str(tmp_path / "copy.py"))
    (tmp_path / "copy.py").write_text(NAN.replace("nan-at-the-end", "full-finetune"))
    with pytest.raises(UsageError, match="installed"):
        load_method(str(tmp_path / "copy.py"))


def test_a_limit_that_cuts_nothing_is_none(tiny_suite: Path, tmp_path: Path) -> None:
    (whole,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path, limit=5000)
    (part,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path, limit=9)
    assert (whole.limit, part.limit) == (None, 9)


def test_a_card_that_changes_its_average_changes_old_runs_without_measuring(
    tiny_suite: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(tiny_suite.parent, suite)
    card = suite / "tiny.toml"
    (before,), _ = run("linear-probe", suite=card, store=tmp_path / "store")
    card.write_text(card.read_text().replace("in_average = false", "in_average = true"))
    (after,), _ = run("linear-probe", suite=card, store=tmp_path / "store")
    both = [before.metrics[name].score for name in ("inverted", "noisy")]
    assert after.eval_id == before.eval_id
    assert after.ood == pytest.approx(sum(both) / 2)


def test_whole_numbers_and_floats_are_the_same_parameter() -> None:
    from bench.identity import digest

    ids = {
        digest(build_method("full-finetune", values).identity())
        for values in ({}, {"warmup": 500}, {"warmup": 500.0})
    }
    assert len(ids) == 1


def test_what_trains_nothing_needs_no_training_images(
    backbone: str, tiny_suite: Path, tmp_path: Path
) -> None:
    card = only_test_images(tiny_suite, tmp_path)
    (alone,), _ = run("zero-shot", suite=card, backbone=backbone, store=tmp_path / "store")
    assert alone.metrics.keys() == {"id-test", "inverted"}
    assert alone.holes.keys() == {"id-val", "noisy"}
    assert alone.temperature is None
    for others in (
        {"methods": ("zero-shot", "linear-probe")},
        {"methods": ("zero-shot",), "trials": 1},
    ):
        with pytest.raises(
            MissingPrerequisite, match="the ID images of Tiny generated shapes are missing"
        ):
            run(
                *others.pop("methods"),
                suite=card,
                backbone=backbone,
                store=tmp_path / "store",
                **others,
            )
    shutil.copytree(tiny_suite.parent / "images/photo", tmp_path / "images/train")
    (whole,), listener = run("zero-shot", suite=card, backbone=backbone, store=tmp_path / "store")
    assert (whole.fit_id, listener.trained()) == (
        alone.fit_id,
        [],
    ), "the same classifier, whatever could be trained on"
    assert whole.metrics.keys() == {"id-val", "id-test", "inverted"}


def test_what_says_that_it_trains_nothing_is_given_nothing(
    tiny_suite: Path, tmp_path: Path
) -> None:
    path = tmp_path / "liar.py"
    path.write_text(
        "import bench\nclass Liar(bench.configure.load_method('linear-probe')):\n    name ="
        " 'liar'\n    trains = False\n"
    )
    (record,), _ = run(str(path), suite=tiny_suite, store=tmp_path / "store")
    assert record.status == "failed"
    assert "`trains = False`" in record.error
    assert "reads the images of train" in record.error
