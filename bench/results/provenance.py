"""Where a result was made: versions, source, commit, hardware. None of it is part of an
identity.
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
    """Hash of the package's Python files, and the commit they lie in if they are in a git
    checkout.
    """
    # Ours lie in folders of their own; they are found and not imported, since this stands below
    # them.
    found = [find_spec(f"bench.{part}") for part in ("methods", "datasets", "leaderboard")]
    folders = {
        _PACKAGE,
        *(Path(spec.origin).resolve().parent for spec in found if spec is not None and spec.origin),
    }
    sha = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.rglob("*.py")):
        sha.update(file.name.encode() + b"\0" + file.read_bytes())
    commit = _git("rev-parse", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None
    return {"source_sha256": sha.hexdigest(), "git_commit": commit, "git_dirty": dirty}


def _git(*arguments: str) -> str | None:
    # Only a checkout whose top is the folder above the package is ours; a virtual environment
    # inside another project is not.
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
    """Versions of Python and of the packages that shape a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def source_sha256() -> str:
    """Hash of ShiftBench's own Python files."""
    return str(_source()["source_sha256"])


def provenance(engine: Engine) -> dict[str, Any]:
    """Versions, source hash, commit, hardware and engine settings of this process."""
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
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def reset_peak_memory(engine: Engine) -> None:
    """Start measuring anew, where the device allows it (a process cannot forget its own peak)."""
    if engine.device_type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(engine.device)


def peak_memory_mb(engine: Engine) -> float:
    """Largest memory of this process so far: of the GPU where it computes there, else resident
    memory.
    """
    if engine.device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(engine.device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
