"""The suites that come with ShiftBench, one TOML card each, and the code of those that are rendered."""

from __future__ import annotations

from pathlib import Path


def cards() -> dict[str, Path]:
    """File of every card, by suite name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
