"""The command line: one module per verb, nothing heavy imported before a verb runs."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from ..console.stops import Ear, heard_by
from ..errors import BenchError, EndedByPlugin, Told
from ..plain import plain
from ..plugins import entries, loaded

_HELP = """Fine-tune a pre-trained image model, and measure what it gains in-distribution and
loses under distribution shift.

\b
  bench run full-finetune wise-ft --seeds 3      fine-tune on the embedded suite, measure, record
  bench leaderboard                              the trade-off of everything recorded so far
  bench run ./my_method.py                       a method of your own, in one file
  bench methods                                  what there is
"""

#: Verbs in the order of the help: run first, then look, then the inventory, then care.
_VERBS = (
    "run",
    "sweep",
    "evaluate",
    "show",
    "methods",
    "suites",
    "data",
    "backbones",
    "check",
    "clean",
    "doctor",
)

#: Errors of the system that a user mends: permissions, read-only and full disks.
_REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT})


def build_app() -> typer.Typer:
    """The application with every verb, those of plug-ins included."""
    import importlib

    app = typer.Typer(
        name="bench",
        cls=_Verbs,
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def options(
        debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
        version: bool = typer.Option(
            False, "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ) -> None:
        if debug:
            os.environ["BENCH_DEBUG"] = "1"

    for verb in _VERBS:
        module = importlib.import_module(f".{verb}", __name__)
        _add(app, verb, getattr(module, "app", None) or module.command)
    for verb, entry in entries("bench.commands").items():
        try:
            _add(app, verb, loaded(entry))
        except BenchError as error:  # one broken package must not hide the commands that work
            print(plain(f"note: the command `{verb}` is left out: {error.what}"), file=sys.stderr)
    return app


class _Verbs(TyperGroup):
    """Our commands end by returning or by an error: where one is ended by `sys.exit`, a plug-in has
    called it.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for."""
        try:
            return super().invoke(ctx)
        except (SystemExit, KeyboardInterrupt) as error:
            if ctx.invoked_subcommand not in _VERBS:
                raise
            raise EndedByPlugin(error) from error


def _add(app: typer.Typer, verb: str, command: Any) -> None:
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=verb)
    else:
        app.command(verb)(command)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("shiftbench"))
        raise typer.Exit


def _refusal(error: OSError) -> BenchError:
    """What the system refused, wherever it was asked: nothing in ShiftBench is wrong."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return BenchError(
        f"the system refuses: {error.strerror}",
        where=str(error.filename2 or error.filename or ""),
        fix=(
            "free some space, and run the same command again"
            if full
            else "mend the permissions, or name another place"
        ),
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `bench`: exit codes as in the documentation, three-line errors, tracebacks
    only on demand.
    """
    # Waiting torch threads must not burn the cores that other runs need; read when torch is
    # imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with heard_by(Ear()):
            build_app()(arguments, prog_name="bench")
    except Told as error:
        if os.environ.get("BENCH_DEBUG"):
            raise
        from ..tables.table import print_error

        print_error(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("BENCH_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            from ..tables.table import print_error

            print_error(_refusal(error))
            sys.exit(1)
        print(
            f"error: a bug in ShiftBench: {plain(f'{type(error).__name__}: {error}')}\n"
            "  to mend: run the command again as `bench --debug ...` and report the traceback",
            file=sys.stderr,
        )
        sys.exit(4)
