"""A suite of datasets of one's own, through runs: projections, matched ID accuracy, relative
errors, few shots, the guard.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bench
from bench.engine import Engine
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.run_spec import RunSpec
from bench.runs.execute import planned_record
from bench.runs.experiment import experiments

SETS = {
    "shapes": (
        """
name = "shapes"
title = "Shapes"
licence = "CC0"
folders = ["./shapes"]
classes = ["disc", "ring", "square", "cross"]
[parts.all]
layouts = [{ path = "photo" }]
[parts.dark]
layouts = [{ path = "dark" }]
"""
    ),
    "round": (
        """
name = "round"
title = "What is round and what is not"
licence = "CC0"
folders = ["./round"]
classes = "./round.tsv"
[parts.test]
pre_crop = 1
layouts = [{ path = "." }]
"""
    ),
}
SUITE = """
name = "own"
title = "Shapes and what is round"
licence = "CC0"
classes = ["disc", "ring", "square", "cross"]
backbone = "timm:test_vit@random?size=32"
[id]
data = "./shapes.toml"
path = "all"
[[shifts]]
name = "round"
data = "./round.toml"
[[shifts]]
name = "dark"
data = "./shapes.toml"
part = "dark"
family = "darkness"
cropped = true
[relative]
name = "mDE"
source = "made up"
reference = { darkness = 0.5 }
"""


def fill(folder: Path, kinds: dict[str, list[int]], count: int, level: int) -> None:
    rng = np.random.default_rng(level)
    for name, patterns in kinds.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pattern = patterns[number % len(patterns)]
            pixels = rng.integers(0, 60, (36, 36, 3))
            pixels[8 * pattern : 8 * pattern + 8, :, :] += level
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for name, text in SETS.items():
        (folder / f"{name}.toml").write_text(text)
    (folder / "round.tsv").write_text(
        "round\tround\tdisc ring\ncornered\tcornered\tsquare\nempty\tempty\tvoid\n"
    )
    kinds = {"disc": [0], "ring": [1], "square": [2], "cross": [3]}
    fill(folder / "shapes/photo", kinds, 30, level=190)
    fill(folder / "shapes/dark", kinds, 5, level=90)
    fill(
        folder / "round",
        {"round": [0, 1], "cornered": [2], "empty": [3], "unknown": [3]},
        6,
        level=180,
    )
    (folder / "own.toml").write_text(SUITE)
    return folder


def run(own: Path, store: Path, card: str = "own.toml", **fields: object) -> RunRecord:
    (record,) = bench.run(
        "linear-probe", suite=str(own / card), store=store, engine=Engine(threads=1), **fields
    )
    assert record.status == "done", record.error
    return record


@pytest.mark.slow
def test_shifts_are_scored_in_their_own_label_space(own: Path, tmp_path: Path) -> None:
    record = run(own, tmp_path)
    assert record.projections == {"round": "max3to2"}
    assert record.metrics["round"].images == 12, "classes that the suite does not have are left out"
    assert record.ood == pytest.approx(
        (record.metrics["round"].score + record.metrics["dark"].score) / 2
    )
    table = pd.read_parquet(Store(tmp_path).run_dir(record) / "predictions/round.parquet")
    assert set(table["label"]) == {0, 1}
    assert (table["prediction"] == table["label"]).mean() == pytest.approx(
        record.metrics["round"].accuracy
    )
    assert (table["log_sum_exp"] - table["label_logit"]).mean() == pytest.approx(
        record.metrics["round"].nll, rel=1e-5
    )


def test_id_test_is_also_scored_on_the_classes_of_the_shift(own: Path, tmp_path: Path) -> None:
    record = run(own, tmp_path)
    assert list(record.id_matched) == ["round"]
    table = pd.read_parquet(Store(tmp_path).run_dir(record) / "predictions/id-test.parquet")
    table = table[table["label"] < 3]  # all but the cross
    logits = np.stack(table["logits"].to_list())
    predicted_round = logits[:, :2].max(axis=1) > logits[:, 2]
    by_hand = (predicted_round == (table["label"] < 2).to_numpy()).mean()
    assert record.id_matched["round"].accuracy == pytest.approx(by_hand)
    assert record.id_matched["round"].images == len(table)


def test_errors_relative_to_a_reference(own: Path, tmp_path: Path) -> None:
    record = run(own, tmp_path)
    assert record.relative == {
        "mDE": pytest.approx(100 * (1 - record.metrics["dark"].accuracy) / 0.5)
    }


@pytest.mark.slow
def test_another_projection_is_another_evaluation_of_the_same_fit(
    own: Path, tmp_path: Path
) -> None:
    (own / "full.toml").write_text('extends = "own.toml"\nname = "full"\nprojection = "full"\n')
    one, other = run(own, tmp_path), run(own, tmp_path, "full.toml")
    assert other.projections == {"round": "full4"}
    assert one.fit_id == other.fit_id
    assert one.eval_id != other.eval_id
    assert one.data == other.data


@pytest.mark.slow
def test_another_preprocessing_of_a_shift_is_another_evaluation(own: Path, tmp_path: Path) -> None:
    (own / "plain.toml").write_text(
        'extends = "own.toml"\nname = "plain"\n[[shifts]]\nname = "dark"\ncropped = false\n'
    )
    one, other = run(own, tmp_path), run(own, tmp_path, "plain.toml")
    assert one.eval_id != other.eval_id
    assert one.metrics["dark"].nll != other.metrics["dark"].nll, (
        "cached features of one are not those of the other"
    )
    assert one.metrics["id-test"] == other.metrics["id-test"]


@pytest.mark.slow
def test_few_shots_are_sampled_by_the_seed_and_are_another_fit(own: Path, tmp_path: Path) -> None:
    whole = run(own, tmp_path)
    few, more = run(own, tmp_path, shots=3), run(own, tmp_path, shots=5)
    other = run(own, tmp_path, shots=3, seeds=[1])
    assert len({whole.fit_id, few.fit_id, more.fit_id, other.fit_id}) == 4
    assert few.label.startswith("linear-probe (shots=3")
    assert few.data == whole.data, "the test images are the same"
    splits = {}
    for shots, seed in ((3, 0), (5, 0), (3, 1)):
        spec = RunSpec(
            methods=("linear-probe",), suite=str(own / "own.toml"), shots=shots, seeds=(seed,)
        )
        (experiment,) = experiments(spec, store=tmp_path, engine=Engine(threads=1))
        train = experiment.setup.split("train")
        assert np.bincount(train.labels).tolist() == [shots] * 4
        splits[shots, seed] = set(train.keys)
    assert splits[3, 0] < splits[5, 0]
    assert splits[3, 0] != splits[3, 1]


@pytest.mark.slow
def test_another_number_of_images_than_the_card_states_is_on_record(
    own: Path, tmp_path: Path
) -> None:
    text = SETS["shapes"]
    assert text.count("[parts.dark]") == 1
    (own / "whole.toml").write_text(text.replace("[parts.dark]", "[parts.dark]\nimages = 20_000"))
    suite = SUITE.replace("./shapes.toml", "./whole.toml").replace('name = "own"', 'name = "half"')
    (own / "half.toml").write_text(suite)
    record = run(own, tmp_path, "half.toml")
    assert record.miscounted == {"dark": "20 images, the card says 20,000"}
    assert run(own, tmp_path, "half.toml").miscounted == record.miscounted, (
        "also where it was done before"
    )
    (own / "whole.toml").write_text(text)
    assert run(own, tmp_path, "half.toml").miscounted == {}, "the card was wrong, and was fixed"


def test_images_prepared_anew_are_seen_by_whoever_has_seen_the_originals(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SETS["shapes"]
    for name, line in (("copy", 'made_of = "pets"'), ("strange", "")):
        (own / f"{name}-shapes.toml").write_text(
            text.replace('licence = "', f'{line}\nlicence = "', 1)
        )
        suite = SUITE.replace("./shapes.toml", f"./{name}-shapes.toml").replace(
            'name = "own"', f'name = "{name}"'
        )
        (own / f"{name}.toml").write_text(suite)
    for name, seen in (("copy", True), ("strange", False)):
        spec = RunSpec(methods=("linear-probe",), suite=str(own / f"{name}.toml"))
        (experiment,) = experiments(spec, store=tmp_path, engine=Engine(threads=1))
        monkeypatch.setattr(experiment.setup.backbone, "seen_suites", ("pets",))
        assert (
            planned_record(
                experiment, experiment.setup.probe.bind(experiment.setup.traits)
            ).id_val_seen
            is seen
        )
