"""The data sets and suites that come with ShiftBench, one TOML card each, class lists, and the code
of rendered suites.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def cards() -> dict[str, Path]:
    """File of every suite's card, by name."""
    return {path.stem: path for path in sorted(_HERE.glob("*.toml"))}


def data_sets() -> dict[str, Path]:
    """File of every data set's card, by name."""
    return {path.stem: path for path in sorted((_HERE / "sets").glob("*.toml"))}


def lists() -> dict[str, Path]:
    """File of every list of classes (.tsv) or prompts (.txt), by name."""
    return {
        path.stem: path
        for path in sorted((_HERE / "lists").iterdir())
        if path.suffix in (".tsv", ".txt")
    }
