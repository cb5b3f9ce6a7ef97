"""Make the web page of a store: as a file, or served and updated while runs finish."""

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
    """A selection of a store's runs as a page.

    Args:
        store: the store.
        view: the view that its boards are made for.
        suites: names or patterns (`*`, `?`); empty for all.
        backbones: likewise.
        methods: likewise, of methods or row labels.
        tell: called with a message before slow work.
    """

    store: Store
    view: View
    suites: Sequence[str] = ()
    backbones: Sequence[str] = ()
    methods: Sequence[str] = ()
    tell: Callable[[str], None] = lambda text: None
    # One for the life of the source, so that comparisons are cached from page to page.
    _document: Document = field(init=False)

    def __post_init__(self) -> None:
        self._document = Document(Predictions(self.store), self.tell)

    def records(self) -> list[RunRecord]:
        """Read the runs of the selection from the store."""
        return select(
            load(self.store), suites=self.suites, backbones=self.backbones, methods=self.methods
        )

    def page(self, records: Sequence[RunRecord], *, live: bool = False) -> str:
        """Return the page of runs as HTML.

        Args:
            records: the runs; without a result, the page says so.
            live: the page reloads when the server reports a newer one.
        """
        return self._page(self._boards(records), live)

    def write(self, records: Sequence[RunRecord], path: Path) -> bool:
        """Write the page of runs to a file, and report its size.

        Returns:
            Whether there was anything to show; if not, no file is written.

        Raises:
            BenchError: the file cannot be written.
        """
        found = self._boards(records)
        if not found.boards and not found.unfinished:
            return False
        text = self._page(found, live=False)
        write_text(path, text)
        self.tell(f"{len(text.encode()) / 1e6:.1f} MB; opens in any browser, without a network")
        return True

    def _boards(self, records: Sequence[RunRecord]) -> Boards:
        return (
            boards(records, self.view, self._document.predictions, load(self.store))
            if records
            else Boards([], [])
        )

    def _page(self, found: Boards, live: bool) -> str:
        return page(self._document.of(found, self.view), live=live)


#: The page's scripts, in an order in which each uses only names of earlier ones while it loads.
#: They are plain scripts, not modules: a page that is opened as a file may not import any.
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
    """Return the page of a document as HTML.

    Args:
        document: see `Document.of`.
        live: include the script that reloads the page when the server reports a newer one.
    """
    import vl_convert

    # The Vega libraries come out of vl-convert, so that the page needs no network and this
    # repository no copy of them.
    own = [_read(name) for name in (*_SCRIPTS, *(["live.js"] if live else []))]
    # The stub of `javascript_bundle` misses the default of its argument.
    scripts = [vl_convert.javascript_bundle(), *own]  # type: ignore[call-arg]
    return Template(_read("page.html")).substitute(
        policy=policy(scripts, live=live),
        version=document["version"],
        style=_read("style.css"),
        document=embedded(document),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def policy(scripts: list[str], *, live: bool = False) -> str:
    """Return a Content-Security-Policy under which these inline scripts run and nothing is fetched.

    Scripts are allowed by hash. Text of a record that became a script would not run, whatever way
    it found into the page.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    # A live page connects to `/events`. Styles are inline because the page is one file.
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:;"
        f" connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def embedded(document: dict[str, Any]) -> str:
    """Return a document as JSON that cannot end its script element or open an HTML comment."""
    # json.dumps escapes everything that is not ASCII, such as U+2028, a line end in JavaScript.
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@lru_cache
def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


HOST = "127.0.0.1"
#: Seconds between two checks of the store, and between two keep-alive messages to an open page.
LOOK, SIGN = 2.0, 15.0


@dataclass
class CurrentPage:
    """The current edition of the page, for which several threads can wait."""

    text: bytes = b""
    edition: int = 0
    _news: threading.Condition = field(default_factory=threading.Condition)

    def replace(self, page: str) -> None:
        """Replace the page by a newer one, and wake the waiting threads."""
        with self._news:
            self.text, self.edition = page.encode(), self.edition + 1
            self._news.notify_all()

    def newer_than(self, edition: int, patience: float) -> bool:
        """Wait up to `patience` seconds for an edition after `edition`; return whether it came."""
        with self._news:
            return self._news.wait_for(lambda: self.edition > edition, timeout=patience)


class Server(ThreadingHTTPServer):
    """An HTTP server of the page (`/`) and of events when it changes (`/events`).

    It listens on 127.0.0.1 only.

    Args:
        port: 0 for a free one.
        sign: seconds between two keep-alive messages to an open page.

    Raises:
        UsageError: the port is taken or invalid.
    """

    # Threads that wait for events must not keep the process alive.
    daemon_threads = True

    def __init__(self, port: int = 0, *, sign: float = SIGN) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port} cannot be used: {getattr(error, 'strerror', None) or error}",
                where="--port",
                fix="choose another port, or leave --port out for a free one",
            ) from error
        self.published = CurrentPage()
        self.sign = sign

    @property
    def port(self) -> int:
        """Return the port that the server listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return f"http://{HOST}:{self.port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    # No versions of Python and of this package for every site that connects.
    server_version, sys_version = "bench", ""
    # A connection that sends nothing would otherwise occupy its thread for ever.
    timeout = 60

    def do_GET(self) -> None:
        # A foreign site can point its own name at this address (DNS rebinding), and would then read
        # the page as its own. Its requests have its name as Host.
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
        # A page on another site may neither cache, sniff, frame nor embed what is on this machine.
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")

    def _events(self) -> None:
        """Send a server-sent event (HTML standard, 9.2) for every edition after the current one."""
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
                    # A comment, which browsers ignore. It fails once the page was closed.
                    self.wfile.write(b":\n\n")
                self.wfile.flush()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the base class prints a line per request on stderr."""


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
    """Serve the page, and update it when the store changes, until `stop` is set or on Ctrl-C.

    Args:
        server: the server.
        make: returns the page.
        stamp: returns a value that differs when the page has to be made again.
        ready: called with the address once there is a page.
        tell: called with the error when a page could not be made; the last one stays.
        look: seconds between two calls of `stamp`.
        stop: ends the server.
    """
    stop = stop or threading.Event()
    # The stamp before the page: a run that finishes in between makes the page again, instead of
    # being missed.
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
            # A record that is damaged, or half written by another program, must not end a server
            # that runs for days. The next change is another chance.
            try:
                server.published.replace(make())
            except BenchError as error:
                tell(f"the page was not updated: {error}")
    finally:
        server.shutdown()
        server.server_close()
