"""Files of strangers run no code: not cards, configurations, records, packs or reported rows."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from bench.cli import main

EVIL = """
from pathlib import Path
from bench import FineTuner
Path("RAN").touch()

class Evil(FineTuner):
    name = "evil"

    def loss(self, batch, student, teacher, constants):
        return student(batch.images).sum()
"""


def bench(*arguments: str, cwd: Path) -> tuple[int | str | None, str]:
    """Exit code, and what is shown."""
    shown = io.StringIO()
    with (
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(shown),
        contextlib.chdir(cwd),
        pytest.raises(SystemExit) as ended,
    ):
        main(list(arguments))
    return ended.value.code, shown.getvalue()


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A file that leaves a trace when it is run."""
    file = tmp_path / "evil.py"
    file.write_text(EVIL.replace("RAN", str(tmp_path / "ran")))
    return file


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.mark.parametrize("world", ["subprocess:Popen", "os:system", "evil:Evil"])
@pytest.mark.parametrize(
    "verb", [["check", "card.toml"], ["run", "linear-probe", "--suite", "card.toml", "--dry-run"]]
)
def test_a_card_s_world_is_a_registered_one(
    verb: list[str], world: str, evil: Path, ran: Path, tmp_path: Path
) -> None:
    card = f"""
name = "card"
title = "Not mine"
licence = "CC0"
classes = ["cat", "dog"]
backbone = "mini-clip"
[source]
kind = "rendered"
world = "{world}"
[source.options]
args = ["touch", "{ran}"]
command = "touch {ran}"
[id]
train = "train"
val = "val"
test = "test"
[[shifts]]
name = "fog"
path = "fog"
count = 9
"""
    (tmp_path / "card.toml").write_text(card)
    code, shown = bench(*verb, cwd=tmp_path)
    assert code in (1, 3)
    assert f"no world `{world}`" in shown
    assert not ran.exists()


@pytest.mark.parametrize("verb", [["run", "wise-ft"], ["sweep", "wise-ft", "--trials", "0"]])
@pytest.mark.parametrize("nested", ['"./evil.py"', '{ name = "./evil.py" }'])
def test_a_card_s_recipe_names_no_file(
    verb: list[str], nested: str, evil: Path, ran: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    (tmp_path / "card.toml").write_text(
        f'extends = "{tiny_suite}"\nname = "card"\n[recipe.wise-ft]\nof = {nested}\n'
    )
    code, shown = bench(*verb, "--suite", "card.toml", "--dry-run", cwd=tmp_path)
    assert code == 2, shown
    assert "evil.py is not run: a data file names it, not you" in shown
    assert not ran.exists()


@pytest.mark.parametrize("verb", ["run", "sweep"])
@pytest.mark.parametrize(
    "named", ['methods = ["./evil.py"]', 'methods = ["wise-ft"]\nof = "./evil.py"']
)
def test_a_configuration_names_a_file_only_where_it_is_allowed(
    verb: str, named: str, evil: Path, ran: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    suite = (
        f'suites = ["{tiny_suite}"]\ntrials = 0' if verb == "sweep" else f'suite = "{tiny_suite}"'
    )
    (tmp_path / "theirs.toml").write_text(f"{named}\n{suite}\n")
    code, shown = bench(verb, "--config", "theirs.toml", "--dry-run", cwd=tmp_path)
    assert code == 2, shown
    assert "evil.py is not run" in shown
    assert "--allow-code" in shown
    assert not ran.exists()
    code, shown = bench(verb, "--config", "theirs.toml", "--dry-run", "--allow-code", cwd=tmp_path)
    assert code == 0, shown
    assert ran.exists()


def test_a_file_that_was_typed_is_run(
    evil: Path, ran: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    code, shown = bench(
        "run", "wise-ft", "--of", "./evil.py", "--suite", str(tiny_suite), "--dry-run", cwd=tmp_path
    )
    assert code == 0, shown
    assert ran.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    [
        ["leaderboard", "--bibtex"],
        ["show", "wise-ft", "--masks", "--suite", "SUITE"],
        ["report", "-o", "r"],
        ["show", "wise-ft"],
    ],
)
def test_a_record_names_no_file(
    verb: list[str], evil: Path, ran: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    code, shown = bench("run", "wise-ft", "--suite", str(tiny_suite), "--store", "s", cwd=tmp_path)
    assert code == 0, shown
    (file,) = (tmp_path / "s").glob("runs/**/wise-ft/*/record.json")
    record = json.loads(file.read_text())
    record["method"]["parameters"]["of"] = {"name": str(evil)}
    file.write_text(json.dumps(record))
    bench(
        *(str(tiny_suite) if word == "SUITE" else word for word in verb),
        "--store",
        "s",
        cwd=tmp_path,
    )
    assert not ran.exists()


def test_a_reported_row_names_no_file(evil: Path, ran: Path, tmp_path: Path) -> None:
    rows = """
suite = "mini-shifts"
[sources]
paper = "A paper"
[backbones]
mini = "mini-clip"
[[rows]]
name = "row"
method = "theirs"
backbone = "mini"
source = "paper"
certainty = "paper"
id = 50.0
[rows.recipe]
method = "./evil.py"
seeds = [0]
tolerance = 1.0
"""
    (tmp_path / "rows.toml").write_text(rows)
    code, shown = bench("reproduce", "rows/row", "--from", "rows.toml", cwd=tmp_path)
    assert code == 2, shown
    assert "evil.py is not run" in shown
    assert not ran.exists()
