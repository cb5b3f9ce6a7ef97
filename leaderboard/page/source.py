"""The page of a store: which of its runs, read anew whenever it is asked for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from bench.errors import BenchError, UsageError
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
        suites, backbones, methods: see `select`.
        view: how the boards are made.
        tell: hears one sentence before slow work.
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
        return select(
            load(self.store), suites=self.suites, backbones=self.backbones, methods=self.methods
        )

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
        self.tell(
            f"{len(text.encode()) / 1e6:.1f} MB; it opens in any browser and needs no network"
        )
        return True

    def _boards(self, records: Sequence[RunRecord]) -> Boards:
        return (
            boards(records, self.view, self._document.predictions, load(self.store))
            if records
            else Boards([], [])
        )

    def _page(self, found: Boards, live: bool) -> str:
        return page(self._document.of(found, self.view), live=live)


#: In the order in which they are read; each says in its first line what it is for.
_SCRIPTS = (
    "elements.js",
    "state.js",
    "figures.js",
    "scatter.js",
    "table.js",
    "comparison.js",
    "drawer.js",
    "main.js",
)


def page(document: dict[str, Any], *, live: bool = False) -> str:
    """The page of a document.

    Scripts are allowed by their hashes alone, so that nothing else that looks like one can run,
    wherever it comes from.

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
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:;"
        f" connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def embedded(document: dict[str, Any]) -> str:
    """JSON that a script element can hold: nothing in it ends the element or opens a comment."""
    text = json.dumps(
        document, allow_nan=False, separators=(",", ":")
    )  # what is not ASCII is an escape already
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@lru_cache
def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


HOST = "127.0.0.1"
#: Seconds between two looks at the folders, and between two signs of life to an open page.
LOOK, SIGN = 2.0, 15.0


@dataclass
class Published:
    """The page as it is now; who waits for a newer one is woken."""

    text: bytes = b""
    edition: int = 0
    _news: threading.Condition = field(default_factory=threading.Condition)

    def replace(self, page: str) -> None:
        """Put a newer page in place."""
        with self._news:
            self.text, self.edition = page.encode(), self.edition + 1
            self._news.notify_all()

    def newer_than(self, edition: int, patience: float) -> bool:
        """Wait for a newer edition, `patience` seconds at most; whether there is one."""
        with self._news:
            return self._news.wait_for(lambda: self.edition > edition, timeout=patience)


class Server(ThreadingHTTPServer):
    """Answers `/` with the page and `/events` with the news that it has changed.

    It listens on 127.0.0.1, and only to requests that name it so: a foreign site whose name was
    made to point here (DNS rebinding) sends its own name as Host.

    Raises:
        UsageError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, port: int = 0, *, sign: float = SIGN) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port} cannot be used: {getattr(error, 'strerror', None) or error}",
                where="--port",
                fix="another port, or none: then a free one is taken",
            ) from error
        self.published = Published()
        self.sign = sign

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "bench", ""
    timeout = 60

    def do_GET(self) -> None:
        if self.headers.get("Host") not in {
            f"{name}:{self.server.port}" for name in (HOST, "localhost")
        }:
            self._answer(
                403,
                b"This server answers requests to 127.0.0.1 and localhost only.\n",
                "text/plain",
            )
        elif self.path == "/":
            self._answer(200, self.server.published.text, "text/html")
        elif self.path == "/events":
            self._events()
        else:
            self._answer(404, b"There is one page here: /\n", "text/plain")

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self._head(status, f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")

    def _events(self) -> None:
        """Server-sent events (HTML standard, 9.2): `changed` for every edition after the one that
        was there at the request.
        """
        self._head(200, "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        edition = self.server.published.edition
        try:
            while True:
                if self.server.published.newer_than(edition, self.server.sign):
                    edition = self.server.published.edition
                    self.wfile.write(b"event: changed\ndata:\n\n")
                else:
                    self.wfile.write(b":\n\n")  # finds out whether the page is still open
                self.wfile.flush()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the story of a page that is looked at is not worth a line per request."""


def serve(
    server: Server,
    make: Callable[[], str],
    stamp: Callable[[], object],
    *,
    ready: Callable[[str], None],
    tell: Callable[[str], None],
    look: float = LOOK,
    stop: threading.Event | None = None,
) -> None:
    """Serve until `stop` is set or a signal interrupts; the page is made anew whenever `stamp`
    gives another value.

    Args:
        ready: hears the address once there is a page.
        tell: hears why a page could not be made; the last one stays in place.
    """
    stop = stop or threading.Event()
    known = stamp()
    server.published.replace(make())
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
    ).start()
    try:
        ready(server.url)
        while not stop.wait(look):
            now = stamp()
            if now == known:
                continue
            known = now
            try:
                server.published.replace(make())
            except BenchError as error:
                tell(f"the page stays as it was: {error}")
    finally:
        server.shutdown()
        server.server_close()
