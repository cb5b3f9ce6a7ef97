"""Cards of the datasets and suites that come with ShiftBench, class lists, and rendered worlds."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def cards() -> dict[str, Path]:
    """Return name -> file of every suite's card."""
    return {path.stem: path for path in sorted(_HERE.glob("*.toml"))}


def datasets() -> dict[str, Path]:
    """Return name -> file of every dataset's card."""
    return {path.stem: path for path in sorted((_HERE / "sets").glob("*.toml"))}


def lists() -> dict[str, Path]:
    """Return name -> file of every list of classes (.tsv) or prompts (.txt)."""
    return {
        path.stem: path
        for path in sorted((_HERE / "lists").iterdir())
        if path.suffix in (".tsv", ".txt")
    }
