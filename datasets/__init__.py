"""Cards of the data sets and suites that come with ShiftBench, class lists, and rendered worlds."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def cards() -> dict[str, Path]:
    """Return name -> file of every suite's card."""
    return {path.stem: path for path in sorted(_HERE.glob("*.toml"))}


def data_sets() -> dict[str, Path]:
    """Return name -> file of every data set's card."""
    return {path.stem: path for path in sorted((_HERE / "sets").glob("*.toml"))}


def lists() -> dict[str, Path]:
    """Return name -> file of every list of classes (.tsv) or prompts (.txt)."""
    return {
        path.stem: path
        for path in sorted((_HERE / "lists").iterdir())
        if path.suffix in (".tsv", ".txt")
    }
