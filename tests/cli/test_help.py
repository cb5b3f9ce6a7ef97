"""The words of the help: every command and option, as they were reviewed."""

from pathlib import Path
from typing import Any

import typer

from bench.cli import build_app

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


if __name__ == "__main__":
    REVIEWED.write_text(text(), encoding="utf-8")
