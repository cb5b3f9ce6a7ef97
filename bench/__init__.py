"""ShiftBench: fine-tune image classifiers and measure accuracy under distribution shift."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# For editors and type checkers, which cannot see names that `__getattr__` provides. `X as X` is the
# form that marks a re-export.
if TYPE_CHECKING:
    from .api import evaluate as evaluate
    from .api import load_runs as load_runs
    from .api import run as run
    from .api import sweep as sweep
    from .classifier import Classifier as Classifier
    from .classifier import interpolate as interpolate
    from .engine import Engine as Engine
    from .errors import BenchError as BenchError
    from .errors import Interrupted as Interrupted
    from .errors import MissingPrerequisite as MissingPrerequisite
    from .errors import UsageError as UsageError
    from .method import Batch as Batch
    from .method import FineTuner as FineTuner
    from .method import Method as Method
    from .method import Nested as Nested
    from .method import Space as Space
    from .method import searched as searched
    from .results.record import RunRecord as RunRecord
    from .run_spec import RunSpec as RunSpec
    from .run_spec import Settings as Settings
    from .stopping import Reporter as Reporter
    from .task import Task as Task

    __version__: str

#: Public name -> module that defines it. Names are imported on first use: torch alone takes seconds
#: to import, which `bench --help` and a mistyped command should not cost.
_HOME = {
    "run": "api",
    "sweep": "api",
    "evaluate": "api",
    "load_runs": "api",
    "Classifier": "classifier",
    "interpolate": "classifier",
    "Batch": "method",
    "FineTuner": "method",
    "Method": "method",
    "Nested": "method",
    "Space": "method",
    "searched": "method",
    "Task": "task",
    "Engine": "engine",
    "Settings": "run_spec",
    "RunSpec": "run_spec",
    "RunRecord": "results.record",
    "Reporter": "stopping",
    "BenchError": "errors",
    "UsageError": "errors",
    "MissingPrerequisite": "errors",
    "Interrupted": "errors",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Read on demand, since it takes milliseconds and `bench --help` needs none.
        from importlib.metadata import version

        return version("shiftbench")
    if name not in _HOME:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
