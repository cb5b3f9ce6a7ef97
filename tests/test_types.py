"""What editors and type checkers see of an editable installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bench.datasets
import bench.leaderboard
import bench.methods

ROOT = Path(__file__).parents[1]

USER = """
from bench.methods.wise_ft import WiSEFT
method = WiSEFT(alpha=0.3)
reveal_type(method)
reveal_type(method.of)
WiSEFT(alpha="id-vall")
"""


@pytest.mark.slow
def test_a_type_checker_sees_the_methods_and_their_fields(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(USER)
    # The project's own configuration is left out: this is a user's directory. Its cache is shared,
    # since a cold one takes 20 s.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--cache-dir",
            str(ROOT / ".mypy_cache" / "user"),
            str(user),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    notes = [
        line.split(": ", 2)[2] for line in done.stdout.splitlines() if line.startswith("user.py")
    ]
    assert 'Revealed type is "bench.methods.wise_ft.WiSEFT"' in notes[0], done.stdout
    assert 'Revealed type is "bench.method.Method"' in notes[1], done.stdout
    assert "id-vall" in notes[2], (
        "a wrong value is an error, which it is not where everything is `Any`"
    )


@pytest.mark.parametrize(
    "package",
    [bench.methods, bench.datasets, bench.leaderboard],
    ids=lambda package: package.__name__,
)
def test_a_new_module_of_the_checkout_is_importable_without_installing_again(
    package: object,
) -> None:
    (place,) = package.__path__  # type: ignore[attr-defined]
    assert Path(place).samefile(ROOT / Path(place).name), (
        "the package is the folder itself, not a list of its files"
    )
