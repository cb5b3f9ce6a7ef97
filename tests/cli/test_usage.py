"""A wrong command line is reported like every error: what, where, and what was meant."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bench.cli import main

from support.messages import states


@pytest.mark.parametrize(
    ("typed", "facts"),
    [
        ("run full-finetune --epochs 3", ("--epochs", "--set epochs=3")),
        ("run full-finetune --lr=1e-4", ("--lr", "--set lr=1e-4")),
        ("sweep wise-ft --alpha 0.3", ("--alpha", "--set alpha=0.3")),
        ("run wise-ft --set note=--lr --lr", ("--lr", "--set lr=VALUE")),
        ("run full-finetune --sedes 3", ("--sedes", "--seeds")),
        ("run full-finetune --seeds x", ("--seeds", "whole number")),
        ("sweep full-finetune --trials -1", ("--trials", "at least 0")),
        ("run --seeds", ("--seeds", "argument")),
        ("show", ("run",)),
        ("leaderboard --format xml", ("--format", "xml", "table")),
        ("data check imagenet", ("bench data check", "bench data verify")),
        ("data download imagenet", ("bench data download", "bench data fetch")),
        ("data fecth", ("bench data fecth", "bench data fetch")),
        ("merge https://example.org/x.shiftpack", ("https://example.org", "download")),
        ("evaluate hf://a/b", ("hf://a/b", "download")),
        ("run wise-ft --search", ("--search", "--id-val-only", "--trials")),
        ("train full-finetune", ("bench train", "bench run")),
        ("runn full-finetune", ("bench runn", "bench run")),
    ],
)
def test_a_mistake_is_named_and_answered(
    typed: str, facts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(typed.split())
    out, err = capsys.readouterr()
    assert ended.value.code == (3 if "://" in typed else 2)
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3
    assert states(err.replace("\n", " "), *facts)
    assert "Input should" not in err


@pytest.mark.parametrize(("typed", "code"), [("--version", 0), ("run --help", 0), ("", 2)])
def test_help_and_version_are_no_errors(
    typed: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(typed.split())
    shown = "".join(capsys.readouterr())
    assert ended.value.code == code
    assert "error:" not in shown
    assert typed == "--version" or "Usage" in shown


@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_a_dumped_configuration_means_the_same_command(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dumped(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([verb, *arguments, "--dump-config"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    file = tmp_path / "my.toml"
    file.write_text(dumped("wise-ft", "--of", "lp-ft", "--set", "alpha=0.3", "--seeds", "2"))
    assert tomllib.loads(file.read_text())["set"] == {"alpha": 0.3}
    assert dumped("--config", str(file)) == file.read_text()
