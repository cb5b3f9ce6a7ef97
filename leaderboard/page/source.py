"""The page of a store: which of its runs, read anew whenever it is asked for."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from bench.results.record import RunRecord
from bench.results.store import Store
from bench.storage.atomic import write_text

from ..board.groups import load, select
from ..board.tables import Boards, View, boards
from ..statistics.predictions import Predictions
from .document import Document


@dataclass
class Source:
    """A selection of a store's runs that becomes a page.

    Args:
        suites, backbones, methods: see `select`. view: how the boards are made. tell: hears one sentence before slow work.
    """

    store: Store
    view: View
    suites: Sequence[str] = ()
    backbones: Sequence[str] = ()
    methods: Sequence[str] = ()
    tell: Callable[[str], None] = lambda text: None
    _document: Document = field(init=False)

    def __post_init__(self) -> None:
        self._document = Document(Predictions(self.store), self.tell)

    def records(self) -> list[RunRecord]:
        """The runs of the selection, as they are now."""
        return select(load(self.store), suites=self.suites, backbones=self.backbones, methods=self.methods)

    def page(self, records: Sequence[RunRecord], *, live: bool = False) -> str:
        """The page of these runs; one that says so if none is a result."""
        return self._page(self._boards(records), live)

    def write(self, records: Sequence[RunRecord], path: Path) -> bool:
        """Write the page of these runs into a file, and say how large it is.

        Returns:
            False if there is nothing to show; no file is written then.

        Raises:
            BenchError: the file cannot be written.
        """
        found = self._boards(records)
        if not found.boards and not found.unfinished:
            return False
        text = self._page(found, live=False)
        write_text(path, text)
        self.tell(f"{len(text.encode()) / 1e6:.1f} MB; it opens in any browser and needs no network")
        return True

    def _boards(self, records: Sequence[RunRecord]) -> Boards:
        return boards(records, self.view, self._document.predictions, load(self.store)) if records else Boards([], [])

    def _page(self, found: Boards, live: bool) -> str:
        return page(self._document.of(found, self.view), live=live)


#: In the order in which they are read; each says in its first line what it is for.
_SCRIPTS = ("elements.js", "state.js", "figures.js", "scatter.js", "table.js", "comparison.js", "drawer.js", "main.js")


def page(document: dict[str, Any], *, live: bool = False) -> str:
    """The page of a document.

    Scripts are allowed by their hashes alone, so that nothing else that looks like one can run, wherever it comes from.

    Args:
        live: the page listens to the server it came from and loads anew when that says so.
    """
    import vl_convert

    own = [_read(name) for name in (*_SCRIPTS, *(["live.js"] if live else []))]
    scripts = [vl_convert.javascript_bundle(), *own]  # type: ignore[call-arg]  # its stub misses the default
    return Template(_read("page.html")).substitute(
        policy=policy(scripts, live=live),
        version=document["version"],
        style=_read("style.css"),
        document=embedded(document),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def policy(scripts: list[str], *, live: bool = False) -> str:
    """A Content-Security-Policy under which these inline scripts run and nothing is fetched."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(document: dict[str, Any]) -> str:
    """JSON that a script element can hold: nothing in it ends the element or opens a comment."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))  # what is not ASCII is an escape already
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@lru_cache
def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
