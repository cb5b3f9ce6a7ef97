"""Ten thousand runs: how long the leaderboard takes to load them and to make its tables."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import pytest

from bench.leaderboard.board.groups import load
from bench.leaderboard.board.tables import View, tables
from bench.results.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_store import write_store

pytestmark = pytest.mark.perf


def test_ten_thousand_runs(tmp_path: Path) -> None:
    write_store(tmp_path, 10_000)
    for path in tmp_path.glob("runs/*/*/*/*/record.json"):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # as if they had lain there for a while
    store = Store(tmp_path)
    print()
    for what in ("without an index", "with it", "with it, again"):
        start, cpu = time.perf_counter(), time.process_time()
        records = load(store)
        print(f"load {what}: {time.perf_counter() - start:.2f} s ({time.process_time() - cpu:.2f} s of CPU)")
    assert len(records) == 10_000
    start, cpu = time.perf_counter(), time.process_time()
    made = tables(records, View())
    rows = sum(len(table.rows) for table in made)
    print(f"tables of {rows} rows: {time.perf_counter() - start:.2f} s ({time.process_time() - cpu:.2f} s of CPU)")
    size = (tmp_path / "runs-index.parquet").stat().st_size
    print(f"index {size / 2**20:.1f} MiB, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")
    assert rows == 2_000
