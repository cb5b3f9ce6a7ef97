"""Which tests there are depends on nothing but their files: pytest-xdist's workers each look for
themselves, and must agree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest


@pytest.mark.slow
def test_another_process_finds_the_same_tests(
    found: list[str], request: pytest.FixtureRequest
) -> None:
    """Later, with other hashes, and with nothing of this environment."""
    config = request.config
    own = {
        "PATH": os.environ["PATH"],
        "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2",
    }
    time.sleep(1)  # gzip, for one, writes the clock's second
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-n",
        "0",
        "-m",
        "",
        "--color=no",
        *config.args,
    ]
    done = subprocess.run(
        command, env=own, cwd=config.invocation_params.dir, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if "::" in line] == found
