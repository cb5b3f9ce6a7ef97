"""The layout of `bench --help`: commands and options under headings, types in plain words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup

#: Heading -> commands, in the order in which a newcomer needs them. Commands that no heading names,
#: such as those of plug-ins, follow under the last one.
_VERBS = {
    "Run": ("run", "sweep", "evaluate", "reproduce"),
    "Compare": ("leaderboard", "show", "compare", "scores", "plot", "report", "pack", "merge"),
    "Data": ("suites", "data"),
    "Extend": ("methods", "backbones", "check"),
    "Maintain": ("doctor", "clean"),
    "Other commands": (),
}

#: Heading -> options by the names of their parameters. Only long lists are divided: a heading for
#: two options hides more than it shows. Options that no heading names stand first.
_OPTIONS = {
    "Options": (),
    "Training data and scores": (
        "limit",
        "shots",
        "keep_logits",
        "skip_unreadable",
        "data_root",
        "curve",
    ),
    "Search": ("trials", "hours", "search", "asha"),
    "Dispatch": (
        "runner",
        "gpus_per_trial",
        "cpus_per_trial",
        "max_concurrent",
        "resources",
        "labels",
        "address",
        "max_failures",
        "timeout",
        "track",
        "jobs",
        "shard",
        "job",
        "print_commands",
    ),
    "Devices": (
        "device",
        "devices",
        "threads",
        "workers",
        "micro_batch",
        "deterministic",
        "checkpoint_seconds",
    ),
    "Plan and files": (
        "config",
        "allow_code",
        "dump_config",
        "dry_run",
        "probe",
        "fresh",
        "store",
        "form",
    ),
}
_LONG = 20

#: What a type is called in the help, by the name that Typer gives it.
_TYPES = {
    r"<(list\[)?int( range)?\]?>": "N",
    r"<(list\[)?float( range)?\]?>": "NUMBER",
    r"<(list\[)?(path|file|directory)\]?>": "PATH",
    r"<(list\[)?(str|text)\]?>": "TEXT",
    r"<([\w.-]+(\|[\w.-]+)+)>": r"[\1]",
    r"\bx>=0(?=\])": "0 or more",
    r"\bx>=(\d+)": r"at least \1",
    r"\b([\d.]+)<=?x<=([\d.]+)": r"\1 to \2",
}


class Command(TyperCommand):
    """A command whose options stand under headings where they are many."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        _write_options(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """A group that shows the whole first sentence of each of its commands."""

    headings: Mapping[str, tuple[str, ...]] = {"Commands": ()}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the commands."""
        _write_options(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands under their headings."""
        left = dict(self.commands)
        for heading, names in self.headings.items():
            rows = [
                (name, command.get_short_help_str(limit=200))
                for name in names or tuple(left)
                if (command := left.pop(name, None)) is not None and not command.hidden
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class Verbs(Group):
    """The subcommands of `bench`, under headings."""

    headings = _VERBS


def _write_options(params: Any, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {
        heading: [] for heading in ("Arguments", *_OPTIONS)
    }
    heading_of = {name: heading for heading, names in _OPTIONS.items() for name in names}
    for param in params:
        record = param.get_help_record(ctx)
        if record is None:
            continue
        if param.param_type_name == "argument":
            heading = "Arguments"
        elif len(params) < _LONG:
            heading = "Options"
        else:
            heading = heading_of.get(param.name, "Options")
        sections[heading].append((_in_words(record[0]), _in_words(record[1])))
    for heading, rows in sections.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def _in_words(text: str) -> str:
    for pattern, words in _TYPES.items():
        text = re.sub(pattern, words, text, flags=re.IGNORECASE)
    return text
