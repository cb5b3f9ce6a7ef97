"""The page of a store: which of its runs, read anew whenever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.results.record import RunRecord
from bench.results.store import Store
from bench.storage.atomic import write_text

from ..board.groups import load, select
from ..board.tables import Boards, View, boards
from ..statistics.predictions import Predictions
from .build import page
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
