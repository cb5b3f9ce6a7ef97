"""A file that is two images stops every verb before it begins; equal images are in the record and
on the board once compared.
"""

from __future__ import annotations

import contextlib
import io
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bench.cli import main

SET = """
name = "set"
title = "Stripes"
licence = "CC0"
folders = ["./stripes"]
classes = ["up", "down"]
identity = "listing"
{stated}
"""
PART = """
[parts.{name}]
[[parts.{name}.layouts]]
kind = "table"
path = "{name}.txt"
header = false
separator = " "
file = "0"
label = "1"
"""
SUITE = """
name = "stripes"
title = "Stripes"
licence = "CC0"
classes = ["up", "down"]
backbone = "timm:test_vit@random?size=32"
[id]
data = "./set.toml"
path = "all"
[[shifts]]
name = "dark"
data = "./set.toml"
part = "dark"
"""


@dataclass
class Done:
    code: int
    out: str
    err: str


def bench(*arguments: str | Path) -> Done:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(map(str, arguments)))
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0
    return Done(code, out.getvalue(), err.getvalue())


def write_set(folder: Path, stated: str = "") -> None:
    parts = "".join(PART.format(name=name) for name in ("all", "dark"))
    (folder / "set.toml").write_text(SET.format(stated=stated) + parts)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The card of a suite of two lists of 40 and 12 files."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BENCH_STORE", str(tmp_path / "store"))
    rng = np.random.default_rng(0)
    for part, count, level in (("all", 40, 150), ("dark", 12, 60)):
        lines = []
        (tmp_path / "stripes" / part).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[16 * (number % 2) : 16 * (number % 2) + 16] += level
            (tmp_path / f"stripes/{part}/{number}.ppm").write_bytes(
                b"P6 32 32 255\n" + pixels.tobytes()
            )
            lines.append(f"{part}/{number}.ppm {number % 2}")
        (tmp_path / f"stripes/{part}.txt").write_text("\n".join(lines) + "\n")
    write_set(tmp_path)
    (tmp_path / "suite.toml").write_text(SUITE)
    return tmp_path / "suite.toml"


def commands(suite: Path) -> dict[str, list[str | Path]]:
    card, on = suite.parent / "set.toml", ["--suite", suite]
    return {
        "run": ["run", "linear-probe", *on],
        "dry run": ["run", "linear-probe", *on, "--dry-run"],
        "sweep": ["sweep", "linear-probe", *on, "--dry-run", "--runner", "local"],
        "evaluate": ["evaluate", suite.parent / "weights.safetensors", *on],
        "check": ["check", suite],
        "verify": ["data", "verify", card],
        "prepare": ["data", "prepare", card, "--part", "all", "--size", "16"],
    }


@pytest.mark.parametrize(
    "verb", ["run", "dry run", "sweep", "evaluate", "check", "verify", "prepare"]
)
def test_a_file_under_two_classes_stops_every_verb(suite: Path, verb: str) -> None:
    (suite.parent / "weights.safetensors").touch()
    with (suite.parent / "stripes/all.txt").open("a") as opened:
        opened.write("all/4.ppm 1\n")
    done = bench(*commands(suite)[verb])
    assert done.code == 1, done.err
    assert "1 file is more than one image: all/4.ppm (down and up)" in done.err
    assert not (suite.parent / "store").exists(), "nothing was begun"


@pytest.mark.parametrize("verb", ["run", "sweep", "evaluate", "check", "verify"])
def test_a_file_in_two_lists_stops_every_verb_that_reads_both(suite: Path, verb: str) -> None:
    (suite.parent / "weights.safetensors").touch()
    with (suite.parent / "stripes/dark.txt").open("a") as opened:
        opened.write("all/4.ppm 0\n")
    done = bench(*commands(suite)[verb])
    assert done.code == 1, done.err
    message = (
        "dark: 1 file is also in all: all/4.ppm"
        if verb == "verify"
        else "in two splits, ID data and dark: all/4.ppm"
    )
    assert message.removeprefix("dark: ") in done.out + done.err
    assert not (suite.parent / "store").exists()


def record(suite: Path) -> dict[str, object]:
    (file,) = (suite.parent / "store").rglob("record.json")
    found: dict[str, object] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("verb", ["check", "verify"])
def test_equal_images_are_in_the_record_and_on_the_board_once_they_were_compared(
    suite: Path, verb: str
) -> None:
    folder = suite.parent / "stripes"
    for number in range(12):  # every photograph of the shift stands among the ID images, too
        (folder / f"all/x{number}.ppm").write_bytes((folder / f"dark/{number}.ppm").read_bytes())
    lines = [f"all/x{number}.ppm {number % 2}" for number in range(12)]
    (folder / "all.txt").write_text((folder / "all.txt").read_text() + "\n".join(lines) + "\n")
    first = bench("run", "linear-probe", "--suite", suite)
    assert first.code == 0, first.err
    assert record(suite)["duplicates"] == {}, "nobody has compared them"
    assert "byte by byte" not in bench("leaderboard").out

    done = bench(*commands(suite)[verb])
    assert done.code == 1
    assert "12 equal images, the card says none" in done.out + done.err
    second = bench("run", "linear-probe", "--suite", suite)
    assert "12 images are also in set all.txt (same bytes)" in second.err
    assert "already done" in second.err, "the identity is that of the files' names and sizes"
    found = record(suite)["duplicates"]
    assert isinstance(found, dict)
    assert found.keys() == {
        *(
            "train",
            "id-val",
            "id-test",
            "dark",
            "id-val in train",
            "id-test in train",
            "dark in train",
        ),
        *("id-test in id-val", "dark in id-val"),
    }
    own = (found["dark in train"], found["dark in id-val"])
    assert 0 < sum(own) <= 12
    assert {found[split] for split in ("train", "id-val", "id-test", "dark")} == {0}
    message = f"dark: {own[0]} images are also in train, byte by byte"
    for shown in (second.out, bench("show", "linear-probe").out, bench("leaderboard").out):
        assert message in " ".join(shown.split())

    write_set(suite.parent, 'duplicates = { "dark in all" = 12 }')
    assert bench(*commands(suite)[verb]).code == 0
    assert record(suite)["duplicates"] == found


def test_a_dataset_tells_what_equal_images_it_is_known_for(suite: Path) -> None:
    write_set(suite.parent, 'duplicates = { all = 2, "dark in all" = 12 }')
    assert "all: 2, dark in all: 12" in bench("data", "show", suite.parent / "set.toml").out
    assert (
        bench(
            "data",
            "prepare",
            suite.parent / "set.toml",
            "--part",
            "all",
            "--size",
            "16",
            "--out",
            suite.parent / "small",
        ).code
        == 0
    )
    (card,) = (suite.parent / "small").glob("*.toml")
    assert tomllib.loads(card.read_text())["duplicates"] == {"all": 2}
