"""Completion in a shell: the words that a TAB offers, and what it must not wait for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import main
from bench.leaderboard.board.measures import EXTRAS
from bench.leaderboard.commands.leaderboard import COLUMNS

Offered = Callable[[str], list[str]]


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Offered:
    """What bash is offered for the last word of a command line."""

    def complete(line: str) -> list[str]:
        monkeypatch.setenv("_BENCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        with pytest.raises(SystemExit):
            main([])
        return capsys.readouterr().out.split()

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bench lea", ["leaderboard"]),
        ("bench run wi", ["wise-ft"]),
        ("bench sweep full-finetune wi", ["wise-ft"]),
        ("bench run wise-ft --of lp", ["lp-ft"]),
        ("bench run --suite pacs-s", ["pacs-subset"]),
        ("bench sweep --suite pacs-s", ["pacs-subset"]),
        ("bench run --backbone ", ["mini-clip", "open_clip:", "timm:"]),
        ("bench check pacs-s", ["pacs-subset"]),
        ("bench check wi", ["wise-ft"]),
        ("bench methods show lp", ["lp-ft"]),
        ("bench suites show pacs-s", ["pacs-subset"]),
        ("bench data fetch imagenet-r", ["imagenet-r"]),
        ("bench leaderboard --columns nll,ec", ["nll,ece"]),
        ("bench run --devi", ["--device", "--devices"]),
        ("bench run no-such-method", []),
    ],
)
def test_names_are_completed(offered: Offered, line: str, words: list[str]) -> None:
    assert offered(line) == words


def test_rows_of_the_store_are_completed(offered: Offered, tmp_path: Path) -> None:
    def save(run: str, text: str) -> None:
        folder = tmp_path / "store" / "runs" / "suite" / "backbone" / "method" / run
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(text)

    save("a", json.dumps({"method": {"name": "mine"}, "label": "mine (lr=1)"}))
    save("b", json.dumps({"method": {"name": "my\x1b[31m"}, "label": "my-own"}))
    save("c", json.dumps({"method": [], "label": "my-other"}))
    save("d", "[" * 100_000)
    save("e", "")
    pipe = tmp_path / "store" / "runs" / "suite" / "backbone" / "method" / "e" / "record.json"
    pipe.unlink()
    os.mkfifo(pipe)  # reading it would never end
    at = f"--store {tmp_path / 'store'}"
    # A label with spaces would become several words.
    assert offered(f"bench compare {at} m") == ["mine", "my-own"]
    assert offered(f"bench show {at} my") == ["my-own"]
    assert offered(f"bench leaderboard {at} --method mi") == ["mine"]
    assert offered("bench show --store /no/such/store m") == []


def test_columns_are_those_of_the_board() -> None:
    assert COLUMNS == EXTRAS


def test_a_tab_waits_for_nothing_heavy() -> None:
    program = (
        "import os, sys\n"
        "os.environ |= {'_BENCH_COMPLETE': 'complete_bash', 'COMP_CWORD': '2'}\n"
        "os.environ['COMP_WORDS'] = sys.argv[1]\n"
        "from bench.cli import main\n"
        "try: main([])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'scipy', 'pandas', 'numpy', 'ray', 'timm', 'open_clip', 'altair'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    for line, word in (("bench run wi", "wise-ft"), ("bench leaderboard --so", "--sort")):
        result = subprocess.run(
            [sys.executable, "-c", program, line], capture_output=True, text=True, check=True
        )
        assert result.stdout.split("\n")[:2] == [word, "[]"], result.stdout
