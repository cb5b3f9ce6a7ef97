"""What a shell completes: names of methods, suites, backbones, datasets and rows.

Each function takes what has been typed of a word and returns the words that it may become. Nothing
here imports torch or a method: a TAB must be answered at once. What cannot be read completes to
nothing, since a shell has no place for an error.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UserFacingError
from ..plugins import backbone_kinds, entries, named_files
from ..storage.files import read_json

#: How many records are read for names of rows, whichever come first: a TAB on a store of thousands
#: must not take seconds.
_AT_MOST = 500


def methods(incomplete: str) -> list[str]:
    """Return the installed methods."""
    return starting(entries("bench.methods"), incomplete)


def suites(incomplete: str) -> list[str]:
    """Return the installed suites."""
    return _files("bench.suites", incomplete)


def datasets(incomplete: str) -> list[str]:
    """Return the datasets that have a card."""
    return _files("bench.data_sets", incomplete)


def methods_and_suites(incomplete: str) -> list[str]:
    """Return what `bench check` takes."""
    return methods(incomplete) + suites(incomplete)


def backbones(incomplete: str) -> list[str]:
    """Return the kinds of backbones; those that need a name end in a colon."""
    kinds = (kind if kind == "mini-clip" else f"{kind}:" for kind in backbone_kinds())
    return starting(kinds, incomplete)


def rows(ctx: Any, incomplete: str) -> list[str]:
    """Return the names of the rows in the store of the command."""
    root = ctx.params.get("store") or os.environ.get("BENCH_STORE") or "bench-store"
    # The layout of `Store.run_dir`: suite, backbone, method, eval_id.
    pattern = os.path.join(glob.escape(str(root)), "runs", *"****", "record.json")
    names = set()
    for path in islice(glob.iglob(pattern), _AT_MOST):
        try:
            record = read_json(Path(path))
            names |= {record["method"]["name"], record["label"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    # bash inserts a word as it is: a name with spaces would become several words.
    return starting((n for n in names if isinstance(n, str) and " " not in n), incomplete)


def _files(group: str, incomplete: str) -> list[str]:
    try:
        return starting(named_files(group, group), incomplete)
    except UserFacingError:
        return []


def starting(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names that begin with what was typed, without any that a terminal would obey."""
    return sorted(name for name in names if name.startswith(incomplete) and name.isprintable())
