"""Collect where a result was made: package versions, source, git commit, hardware, settings.

None of this is part of an identity: the same fit from another machine is the same fit.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from ..engine import Engine

#: Packages that can change a number: training, models, decoding of images, statistics.
_PACKAGES = (
    "shiftbench",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "numpy",
    "scikit-learn",
    "pillow",
    "pandas",
)
_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def _source() -> dict[str, Any]:
    """Hash the package's Python files, and read the commit if they are in a git checkout."""
    # In a checkout, methods, datasets and leaderboard are folders next to `bench`. They are located
    # and not imported, since `bench` must not depend on them.
    found = [find_spec(f"bench.{part}") for part in ("methods", "datasets", "leaderboard")]
    folders = {
        _PACKAGE,
        *(Path(spec.origin).resolve().parent for spec in found if spec is not None and spec.origin),
    }
    sha = hashlib.sha256()
    # By name and content, without the folder, which differs between installations.
    for file in sorted(file for folder in folders for file in folder.rglob("*.py")):
        sha.update(file.name.encode() + b"\0" + file.read_bytes())
    # Untracked files are ignored: a store or a dataset in the checkout changes no code.
    commit = _git("rev-parse", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None
    return {"source_sha256": sha.hexdigest(), "git_commit": commit, "git_dirty": dirty}


def _git(*arguments: str) -> str | None:
    # Only a checkout whose top is the folder above the package is ours. In a virtual environment
    # inside another project, git would report that project's commit.
    if not (_PACKAGE.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=_PACKAGE.parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that can change a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def source_sha256() -> str:
    """Return the hash of ShiftBench's own Python files."""
    return str(_source()["source_sha256"])


def provenance(engine: Engine) -> dict[str, Any]:
    """Return versions, source hash, commit, hardware and engine settings of this process."""
    # Imported here, as below: commands that only print versions need not wait for torch.
    import torch

    gpu = torch.cuda.get_device_name(engine.device) if engine.device_type == "cuda" else None
    return {
        "versions": versions(),
        **_source(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
        "device": engine.device,
        "devices": engine.devices,
        "threads": engine.threads,
        "workers": engine.workers,
        "micro_batch": engine.micro_batch,
        "deterministic": engine.deterministic,
    }


def _processor() -> str:
    # On Linux `platform.processor` returns the architecture or nothing.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def reset_peak_memory(engine: Engine) -> None:
    """Restart the measurement of peak memory on a GPU; the peak of a process cannot be reset."""
    if engine.device_type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(engine.device)


def peak_memory_mb(engine: Engine) -> float:
    """Return the peak memory in MiB: allocated on the GPU, or resident memory on a CPU."""
    if engine.device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(engine.device) / 2**20
    # In bytes on macOS, in kibibytes elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
