"""The served page: this machine alone, made anew when runs finish, and gone without a trace."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench.errors import BenchError, UsageError
from bench.leaderboard.page.source import Server, serve
from bench.results.record import RunRecord
from bench.results.store import Store

Make = Callable[..., RunRecord]
#: Seconds after which what is waited for will not come.
PATIENCE = 240
pytestmark = pytest.mark.waits


class Site:
    """A page and a stamp that a test changes, and what the server tells."""

    def __init__(self) -> None:
        self.page, self.stamp, self.fail = "first", 0, ""
        self.shown: list[str] = []
        self.heard = threading.Event()

    def make(self) -> str:
        if self.fail:
            raise BenchError(self.fail)
        return self.page

    def tell(self, text: str) -> None:
        self.shown.append(text)
        self.heard.set()


@contextmanager
def served(site: Site) -> Iterator[Server]:
    server, stop, ready = Server(sign=0.05), threading.Event(), threading.Event()
    options = {"ready": lambda url: ready.set(), "tell": site.tell, "look": 0.02, "stop": stop}
    thread = threading.Thread(
        target=serve, args=(server, site.make, lambda: site.stamp), kwargs=options
    )
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield server
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def get(server: Server, path: str = "/", **headers: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read().decode()


def test_it_serves_the_page_to_this_machine_only() -> None:
    with served(Site()) as server:
        answer, text = get(server)
        assert (answer.status, text) == (200, "first")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert server.server_address[0] == "127.0.0.1"
        assert get(server, Host=f"localhost:{server.port}")[0].status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1.evil.example:{port}",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/events"])
def test_it_refuses_a_foreign_host(host: str, path: str) -> None:
    with served(Site()) as server:
        answer, text = get(server, path, Host=host.format(port=server.port))
        assert answer.status == 403
        assert "first" not in text


@pytest.mark.parametrize("path", ["/etc/passwd", "/../record.json", "/?x"])
def test_there_is_nothing_but_the_page(path: str) -> None:
    with served(Site()) as server:
        assert get(server, path)[0].status == 404


def test_what_is_not_a_get_is_refused() -> None:
    with served(Site()) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("POST", "/", body="x")
        assert connection.getresponse().status == 501


def test_an_open_page_learns_when_runs_finish_and_then_gets_the_new_one() -> None:
    site = Site()
    with served(site) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("GET", "/events")
        events = connection.getresponse()
        assert events.headers["Content-Type"].startswith("text/event-stream")
        assert events.readline() == b":\n"  # a sign of life: it listens
        site.page, site.stamp = "second", 1
        lines = iter(events.readline, b"")
        assert next(line for line in lines if line.startswith(b"event")) == b"event: changed\n"
        assert get(server)[1] == "second"


def test_a_page_that_cannot_be_made_leaves_the_last_one_and_says_why() -> None:
    site = Site()
    with served(site) as server:
        site.fail, site.stamp = "a record is damaged", 1
        assert site.heard.wait(PATIENCE)
        assert "a record is damaged" in site.shown[-1]
        assert get(server)[1] == "first"
        edition = server.published.edition
        site.fail, site.page, site.stamp = "", "fixed", 2
        assert server.published.newer_than(edition, PATIENCE), "the page is made again"
        assert get(server)[1] == "fixed"


def test_a_port_that_is_taken_is_reported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot be used"):
            Server(taken.getsockname()[1])


def test_a_port_that_does_not_exist_is_reported() -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        Server(70_000)


def test_ctrl_c_ends_it_cleanly(make: Make, store: Store) -> None:
    store.save_run(make())
    command = [
        sys.executable,
        "-m",
        "bench.cli",
        "leaderboard",
        "--serve",
        "--store",
        str(store.root),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    url = process.stdout.readline()
    assert url.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    _, story = process.communicate()
    assert process.returncode == 0
    assert "stopped" in story
    assert "Traceback" not in story
