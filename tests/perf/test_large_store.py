"""Ten thousand runs: how long the leaderboard takes to load them and to make its tables."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.leaderboard.board.groups import load
from bench.leaderboard.board.tables import View, tables
from bench.results.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from support.synthetic_store import write_store

pytestmark = pytest.mark.perf


@contextmanager
def slow_files(wait: float) -> Iterator[list[int]]:
    """As on a file server: opening, reading, closing, listing and asking about a file take `wait`
    seconds each.
    """
    operations = [0]

    def shown(event: str, _: object) -> None:
        # Of an open file, a read and the close are not told.
        count = {"open": 3, "os.scandir": 2, "os.listdir": 2}.get(event, 0)
        operations[0] += count
        if count and wait and listening:
            time.sleep(count * wait)

    listening = [True]
    sys.addaudithook(shown)
    original = os.stat

    def slow_stat(*arguments: Any, **named: Any) -> os.stat_result:
        operations[0] += 1
        if wait:
            time.sleep(wait)
        return original(*arguments, **named)

    os.stat = slow_stat  # type: ignore[assignment]
    try:
        yield operations
    finally:
        os.stat = original
        listening.clear()


def test_ten_thousand_runs(tmp_path: Path) -> None:
    write_store(tmp_path, 10_000)
    store = Store(tmp_path)
    print()
    for what, wait in (("here", 0.0), ("where every file operation takes 1 ms", 1e-3)):
        with slow_files(wait) as operations:
            start, cpu = time.perf_counter(), time.process_time()
            records = load(store)
            took = f"{time.perf_counter() - start:.2f} s ({time.process_time() - cpu:.2f} s of CPU)"
        print(f"load {what}: {took}, {operations[0]} operations")
    assert len(records) == 10_000
    start, cpu = time.perf_counter(), time.process_time()
    made = tables(records, View())
    rows = sum(len(table.rows) for table in made)
    print(
        f"tables of {rows} rows: {time.perf_counter() - start:.2f} s"
        f" ({time.process_time() - cpu:.2f} s of CPU)"
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")
    assert rows == 2_000
