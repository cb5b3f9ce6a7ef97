"""Files with one thing wrong, each read by a command in a process forked from a warm one: exit
code, memory and time.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Values of other kinds and sizes than anybody expects.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 2**63, 10**400, float("nan"), float("inf"), "", "\x1b[31m\u202e",
    "x" * 10_000, "../../etc/passwd",
    "{0..999999999}", "*" * 50, [], {}, [[]], {"": None}, ["a"], [1, 2], {"name": "a"},
)  # fmt: skip
#: A command may take this much.
SECONDS, MEBIBYTES = 20.0, 1024


@dataclass
class Found:
    """What became of the mutants of one kind of file."""

    codes: Counter[int] = field(default_factory=Counter)
    most_mebibytes: float = 0.0
    most_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        codes = ", ".join(f"{number} with {code}" for code, number in sorted(self.codes.items()))
        return (
            f"exit codes: {codes}; at most {self.most_mebibytes:.0f} MiB and"
            f" {self.most_seconds:.1f} s"
        )


def within(value: Any, rng: random.Random) -> Any:
    """A copy of tables and lists with one odd value, one entry missing, or one too many."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = (
            node.items()
            if isinstance(node, dict)
            else enumerate(node)
            if isinstance(node, list)
            else ()
        )
        for key, item in items:
            places.append((node, key))
            walk(item)

    copy = json.loads(json.dumps(value))
    walk(copy)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        node, key = rng.choice(places)
        how = rng.randrange(6)
        if how == 0 and isinstance(node, dict):
            node.pop(key, None)
        elif how == 1 and isinstance(node, dict):
            node[rng.choice(("", "extra", "\x1b"))] = rng.choice(ODD)
        elif how == 2 and isinstance(node, list):
            node.append(rng.choice(ODD))
        elif isinstance(node, dict) or key < len(node):
            node[key] = rng.choice(ODD)
    return copy


def bytes_within(content: bytes, rng: random.Random) -> bytes:
    """A copy with bytes changed, cut off, left out, repeated or put in between."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(made) + 1), rng.choice((1, 1, 2, 4, 64, 4096))
        how = rng.randrange(5)
        if how == 0:
            del made[at:]
        elif how == 1:
            del made[at : at + length]
        elif how == 2:
            made[at:at] = rng.randbytes(length)
        elif how == 3:
            made[at:at] = made[at : at + length]
        else:
            made[at : at + length] = rng.choice(
                (rng.randbytes(length), b"\xff" * length, b"\0" * length)
            )
    return bytes(made)


def zip_within(content: Path, made: Path, rng: random.Random) -> None:
    """A copy of a zip archive, the bytes of one member mutated, its sizes and sums right."""
    with zipfile.ZipFile(content) as source:
        members = {name: source.read(name) for name in source.namelist()}
    chosen = rng.choice(list(members))
    before = members.pop(chosen)
    after = (
        json_within(before, rng)
        if before[:1] == b"{" and rng.random() < 0.8
        else bytes_within(before, rng)
    )
    # A member that is named by its content gets the name of what it holds now, wherever that
    # stands.
    old, new = (hashlib.sha256(one).hexdigest() for one in (before, after))
    members[chosen.replace(old, new)] = after
    with zipfile.ZipFile(made, "w") as target:
        for name, member in members.items():
            target.writestr(name, member.replace(old.encode(), new.encode()))


def json_within(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(within(json.loads(content), rng)).encode()


def toml(value: Any) -> str:
    """Tables and lists as TOML, inline below the first level."""
    return "".join(
        f"{json.dumps(str(key))} = {_inline(item)}\n"
        for key, item in value.items()
        if item is not None
    )


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{json.dumps(str(k))} = {_inline(v)}" for k, v in value.items() if v is not None
            )
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value if item is not None) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def run(command: list[str], folder: Path) -> tuple[int, float, float]:
    """Exit code (128 and the signal's number where one ended it), MiB and seconds of a command."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        code = 99
        try:
            os.chdir(folder)
            shown = os.open("told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(shown, 1)
            os.dup2(shown, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            # A handler of pytest would wait for a lock that nobody holds.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(SECONDS))
            from bench.cli import main

            try:
                main(command)
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code, used.ru_maxrss / 1024, time.monotonic() - start


def try_mutants(
    make: Callable[[Path, random.Random], list[str]], number: int, folder: Path, seed: int = 0
) -> Found:
    """Make and read mutants.

    Args:
        make: writes a mutant to a folder, and says which command reads it.
    """
    found = Found()
    for one in range(number):
        place = folder / f"{one}"
        place.mkdir()
        command = make(place, random.Random(f"{seed}-{one}"))
        code, mebibytes, seconds = run(command, place)
        found.codes[code] += 1
        found.most_mebibytes, found.most_seconds = (
            max(found.most_mebibytes, mebibytes),
            max(found.most_seconds, seconds),
        )
        if code == 4 or code > 5 or mebibytes > MEBIBYTES or seconds > SECONDS:
            shown = (place / "told").read_text(errors="replace").strip()[-300:]
            found.faults.append(
                f"mutant {one}: exit {code}, {mebibytes:.0f} MiB, {seconds:.1f} s,"
                f" {' '.join(command)}: {shown}"
            )
    return found
