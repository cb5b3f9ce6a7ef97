"""The words of the help: every command and option, as they were reviewed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from bench.cli import _VERBS, build_app
from bench.plugins import entries

REVIEWED = Path(__file__).parent / "help.txt"


def lines(command: Any, path: str, above: Any = None) -> list[str]:
    """A command's help, an option on a line, whatever the width of a terminal."""
    context = command.context_class(command, info_name=path.split()[-1], parent=above)
    found = [f"== {path}", *(line.strip() for line in (command.help or "").strip().splitlines())]
    for option in command.params:
        record = option.get_help_record(context)
        if record and "completion" not in record[0]:
            found.append(
                f"{' / '.join((*option.opts, *option.secondary_opts))}:"
                f" {' '.join(record[1].split())}"
            )
    for name, part in getattr(command, "commands", {}).items():
        found += ["", *lines(part, f"{path} {name}", context)]
    return found


def text() -> str:
    """The help of every command."""
    return "\n".join(lines(typer.main.get_command(build_app()), "bench")) + "\n"


def test_the_help_of_every_command_is_the_reviewed_one() -> None:
    """After a change that is meant, write the new text: `python tests/cli/test_help.py`, and review
    the difference.
    """
    assert text() == REVIEWED.read_text(encoding="utf-8")


def printed(*arguments: str) -> str:
    """What `bench ... --help` prints on a wide terminal."""
    result = CliRunner().invoke(build_app(), [*arguments, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    return result.output


def under(heading: str, text: str) -> list[str]:
    """The first words of the lines under a heading."""
    section = text.split(f"\n{heading}:\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in section.splitlines() if re.match(r"  \S", line)]


def commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for name, part in getattr(command, "commands", {}).items():
        yield from commands(part, *path, name)


def test_commands_stand_under_headings_in_the_order_of_use() -> None:
    text = printed()
    assert under("Run", text) == ["run", "sweep", "evaluate", "reproduce"]
    assert under("Data", text) == ["suites", "data"]
    headings = ("Run", "Compare", "Data", "Extend", "Maintain")
    shown = [verb for heading in headings for verb in under(heading, text)]
    assert sorted(shown) == sorted([*_VERBS, *entries("bench.commands")])
    assert [text.index(f"\n{heading}:\n") for heading in headings] == sorted(
        text.index(f"\n{heading}:\n") for heading in headings
    )
    assert "..." not in text.split("Run:")[1]  # no first sentence is cut off


def test_many_options_are_grouped_and_few_are_not() -> None:
    run = printed("run")
    assert {"--set", "--suite", "--seeds"} <= set(under("Options", run))
    assert {"--device", "--threads"} <= set(under("Devices", run))
    assert "Dispatch:" in printed("sweep")
    assert "Plan and files:" not in printed("show")


def test_no_help_has_a_programmers_type_names() -> None:
    for path in commands(typer.main.get_command(build_app())):
        assert not re.search(r"<\w+( range)?>|<list\[|x>=|<=x", printed(*path)), path


if __name__ == "__main__":
    REVIEWED.write_text(text(), encoding="utf-8")
