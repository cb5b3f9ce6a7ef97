"""Claims on a folder: one owner, takeover of the dead and the stalled, and no way back for a
stalled owner.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.results.store import Store
from bench.storage.atomic import write_text
from bench.storage.lease import Lease, LeaseLost, _started, _surely_dead, _this_process, is_live

from support.runs import run


def claim_of_another_machine(folder: Path, generation: int = 1) -> Path:
    path = folder / "lease" / f"{generation:06d}.json"
    write_text(
        path,
        json.dumps(
            {
                "host": "elsewhere",
                "boot": 1,
                "pid": 1,
                "born": 1.0,
                "token": "x",
                "beat": 1,
                "released": False,
            }
        ),
    )
    return path


def test_released_folder_is_taken_at_once(tmp_path: Path) -> None:
    with Lease(tmp_path) as first:
        assert is_live(tmp_path)
        first.check()
    assert not is_live(tmp_path)
    with Lease(tmp_path) as second:
        assert second.generation == first.generation + 1


def test_a_taker_whose_number_has_come_and_gone_removes_nothing_of_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(tmp_path):
        pass
    partial = tmp_path / "checkpoint" / ".000003.safetensors.x.part"
    partial.parent.mkdir()

    def late(path: Path, text: str, *, exclusive: bool = False) -> bool:
        """Claim number 2 when two others have taken the folder, of which the second is at work."""
        monkeypatch.undo()
        claim_of_another_machine(tmp_path, generation=3)
        partial.touch()
        return write_text(path, text, exclusive=exclusive)

    class Waits(Exception):
        pass

    def waiting(claim: dict[str, object]) -> None:
        raise Waits

    monkeypatch.setattr("bench.storage.lease.write_text", late)
    with pytest.raises(Waits), Lease(tmp_path, waiting=waiting):
        pass
    assert partial.exists()
    assert not (tmp_path / "lease" / "000002.json").exists(), "the claim is withdrawn"
    assert (tmp_path / "lease" / "000003.json").exists()


@pytest.mark.waits
def test_silent_owner_elsewhere_is_taken_over_on_our_clock(tmp_path: Path) -> None:
    claim_of_another_machine(tmp_path)
    start = time.monotonic()
    with Lease(tmp_path, stale_after=0.4) as lease:
        assert lease.generation == 2
    assert time.monotonic() - start >= 0.4


@pytest.mark.waits
def test_beating_owner_is_waited_for(tmp_path: Path) -> None:
    path = claim_of_another_machine(tmp_path)

    class Enough(Exception):
        pass

    beats = 0

    def waiting(claim: dict[str, object]) -> None:
        nonlocal beats
        beats += 1
        write_text(path, path.read_text().replace(f'"beat": {beats}', f'"beat": {beats + 1}'))
        if beats == 8:
            raise Enough

    with pytest.raises(Enough), Lease(tmp_path, stale_after=0.5, waiting=waiting):
        pass  # never reached: 8 waits are far longer than stale_after, but the beat moved each time
    assert beats == 8


def test_stalled_owner_cannot_commit_after_waking_up(tmp_path: Path) -> None:
    with Lease(tmp_path, beat=1000) as stalled:
        write_text(
            tmp_path / "lease" / "000002.json", json.dumps({"host": "elsewhere", "released": False})
        )
        assert not stalled.held()
        with pytest.raises(LeaseLost):
            stalled.check()
    # Leaving the block must not touch the new owner's claim.
    assert json.loads((tmp_path / "lease" / "000002.json").read_text()) == {
        "host": "elsewhere",
        "released": False,
    }


def hold_and_count(folder: str, log: str) -> None:
    with Lease(Path(folder)) as lease, open(log, "a") as file:
        file.write(f"in {lease.generation}\n")
        file.flush()
        time.sleep(0.05)
        file.write(f"out {lease.generation}\n")


@pytest.mark.waits
def test_many_takers_never_overlap(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    takers = [
        spawn.Process(target=hold_and_count, args=(str(tmp_path / "f"), str(tmp_path / "log")))
        for _ in range(4)
    ]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    assert [line.split()[0] for line in lines] == ["in", "out"] * 4
    assert [line.split()[1] for line in lines[::2]] == [line.split()[1] for line in lines[1::2]]


def hold_forever(folder: str) -> None:
    with Lease(Path(folder)):
        signal.pause()


@pytest.mark.waits
def test_killed_owner_on_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=hold_forever, args=(str(tmp_path),)
    )
    process.start()
    while not is_live(tmp_path):
        assert process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    def waiting(claim: dict[str, object]) -> None:
        raise AssertionError(f"waits for {claim}")

    with Lease(tmp_path, waiting=waiting) as lease:
        assert lease.generation == 2


def test_a_step_of_the_clock_kills_no_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waits(Exception):
        pass

    def waiting(claim: dict[str, object]) -> None:
        raise Waits

    with Lease(tmp_path) as owner:
        now, booted = time.time, psutil.boot_time
        monkeypatch.setattr(time, "time", lambda: now() + 5)
        monkeypatch.setattr(psutil, "boot_time", lambda: booted() + 5)
        with pytest.raises(Waits), Lease(tmp_path, waiting=waiting):
            pass
        owner.check()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the beat alone counts")
def test_whose_owner_is_surely_dead() -> None:
    me = _this_process()
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    zombie = {**me, "pid": child.pid, "started": _started(child.pid)}
    while not _surely_dead(zombie):  # it has ended, and nobody has asked for its exit code yet
        time.sleep(0.01)
    child.wait()
    assert _surely_dead({**me, "pid": child.pid})
    assert _surely_dead({**me, "started": me["started"] - 1})
    assert not _surely_dead(me)
    assert not _surely_dead({**me, "pid": 1, "started": _started(1)})
    for unknown in (
        {"boot": "another"},
        {"space": "another"},
        {"pid": "x"},
        {"pid": 10**30},
        {"pid": -1},
        {"started": None},
    ):
        assert not _surely_dead({**me, "pid": child.pid, **unknown}), unknown


def test_where_the_system_does_not_say_when_it_was_started_the_beat_alone_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.storage.lease._boot", lambda: "")
    monkeypatch.setattr(
        "bench.storage.lease._started", lambda pid: pytest.fail("there is no /proc")
    )
    with Lease(tmp_path):
        claim = json.loads((tmp_path / "lease" / "000001.json").read_text())
        assert (claim["boot"], claim["started"]) == ("", None)
        assert not _surely_dead({**claim, "pid": 2**22 + 1})
        assert is_live(tmp_path)
    assert not is_live(tmp_path)


@pytest.mark.parametrize("text", ["", "garbage", "[1]", "\x00\xff", "[" * 100_000, "null"])
def test_a_garbage_claim_is_nobodys(text: str, tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "000007.json").write_text(text, encoding="latin-1")
    (tmp_path / "lease" / "notes.json").write_text("{}")
    assert not is_live(tmp_path)
    with Lease(tmp_path, waiting=lambda claim: pytest.fail(f"waits for {claim}")) as lease:
        assert lease.generation == 8
        lease.check()


def test_a_new_holder_removes_what_killed_writers_left(tmp_path: Path) -> None:
    left = [
        ".tmpa1B2c3",
        ".record.json.0f.part",
        "checkpoint/.tmpzzzzzz",
        "predictions/.id-test.parquet.1.part",
        "curve/.x.part",
    ]
    saved = [
        "record.json",
        "checkpoint/000001.safetensors",
        "packs/0123/.record.json.0f.part",
        ".tmp",
        ".tmp-long-name",
    ]
    for name in (*left, *saved):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with Lease(tmp_path):
        assert [name for name in (*left, *saved) if (tmp_path / name).exists()] == saved


def test_a_store_that_was_moved_is_not_called_taken_over(tmp_path: Path) -> None:
    with Lease(tmp_path / "store" / "fit") as lease:
        (tmp_path / "store").rename(tmp_path / "elsewhere")
        with pytest.raises(LeaseLost, match="the store was moved or removed while this ran"):
            lease.check()
    assert not (tmp_path / "store").exists()


def test_a_fit_keeps_one_file_of_weights(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = run("linear-probe", suite=tiny_suite, store=tmp_path)
    folder = Store(tmp_path).fit_dir(record.fit_id)
    (weights,) = folder.glob("weights-*")
    (folder / "fit.json").unlink()
    weights.rename(folder / "weights-000000.safetensors")
    (folder / ".tmpABCdef").write_bytes(b"x")
    (Store(tmp_path).run_dir(record) / "record.json").unlink()
    run("linear-probe", suite=tiny_suite, store=tmp_path)
    (saved,) = folder.glob("weights-*")
    assert saved.name == json.loads((folder / "fit.json").read_text())["weights"]
    assert not (folder / ".tmpABCdef").exists()
