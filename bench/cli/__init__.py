"""The `bench` command: one module per subcommand, with heavy imports deferred until it runs."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from ..console.signals import StopHandler, handled_by
from ..errors import BenchError, EndedByPlugin, UserFacingError
from ..plain import plain
from ..plugins import entries, loaded
from .help import Command, Group, Verbs

_HELP = """Fine-tune a pre-trained image model and measure its in-distribution and
out-of-distribution accuracy.

\b
  bench run full-finetune wise-ft --seeds 3      fine-tune on the embedded suite and evaluate
  bench leaderboard                              compare all recorded runs
  bench run ./my_method.py                       run your own method from one file
  bench methods                                  list the installed methods
"""

#: The built-in subcommands. Each name is also the name of its module in this package.
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

#: Operating-system errors that the user fixes (permissions, read-only and full disks). Any other
#: OSError that reaches `main` is reported as a bug.
_REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT})


def build_app(only: str = "") -> typer.Typer:
    """Return the application with all subcommands, including those of plug-ins.

    Args:
        only: Name of a subcommand that is enough; the modules of the others are not imported.
    """
    import importlib

    app = typer.Typer(
        name="bench",
        cls=_Verbs,
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        # Subcommands inherit it. As wide as the terminal, up to where lines are hard to follow.
        context_settings={"max_content_width": 120},
        # `main` prints the errors; Typer's own tracebacks would come before it.
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def options(
        debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
        version: bool = typer.Option(
            False, "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ) -> None:
        # In the environment and not in a global, so that the processes of a sweep inherit it.
        if debug:
            os.environ["BENCH_DEBUG"] = "1"

    plugins = entries("bench.commands")
    wanted = {only} if only in {*_VERBS, *plugins} else {*_VERBS, *plugins}
    for verb in (verb for verb in _VERBS if verb in wanted):
        module = importlib.import_module(f".{verb}", __name__)
        _add(app, verb, getattr(module, "app", None) or module.command)
    for verb, entry in plugins.items():
        if verb not in wanted:
            continue
        try:
            _add(app, verb, loaded(entry))
        except BenchError as error:
            # One broken package must not disable the commands that work.
            message = f"note: the command `{verb}` is unavailable: {error.what}"
            print(plain(message), file=sys.stderr)
    return app


class _Verbs(Verbs):
    """A command group that reports `sys.exit` inside a built-in command as a plug-in's failure.

    Built-in commands end by returning or by raising an error, so only code of a method or another
    plug-in that they run can have called `sys.exit`. Commands of plug-ins may exit as they like.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the requested subcommand."""
        try:
            return super().invoke(ctx)
        except (SystemExit, KeyboardInterrupt) as error:
            if ctx.invoked_subcommand not in _VERBS:
                raise
            raise EndedByPlugin(error) from error


def _add(app: typer.Typer, verb: str, command: Any) -> None:
    if isinstance(command, typer.Typer):
        for registered in command.registered_commands:
            if registered.cls is TyperCommand:
                registered.cls = Command
        app.add_typer(command, name=verb, cls=Group)
    else:
        app.command(verb, cls=Command)(command)


def _completed_verb() -> str:
    """Return the subcommand whose words a shell wants completed; empty if there is none.

    A TAB must not wait for the modules of the other subcommands.
    """
    if "_BENCH_COMPLETE" not in os.environ:
        return ""
    words = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    typed = words.split()
    # The word at the cursor is still being typed, unless a space ends it.
    return typed[1] if len(typed) > 2 or (len(typed) == 2 and words[-1].isspace()) else ""


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(version("shiftbench"))
        raise typer.Exit


def _refusal(error: OSError) -> BenchError:
    """Return the error that the user sees for one of `_REFUSALS`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return BenchError(
        f"the operating system refused: {error.strerror}",
        # Of a link or a rename, the second name is the one that could not be created.
        where=str(error.filename2 or error.filename or ""),
        fix=(
            "free some space and run the same command again"
            if full
            else "fix the permissions, or use another path"
        ),
    )


#: Typer's error for a wrong command line, which has no public name: the base of one that has.
_WRONG_USAGE: Any = typer.BadParameter.__bases__[0]


def main(arguments: list[str] | None = None) -> None:
    """Run `bench`: print errors in at most three lines and exit with a documented code.

    Tracebacks are shown only with --debug. Exit code 4 is a bug in ShiftBench.
    """
    # Idle torch threads must not spin on the cores that other runs need. OpenMP reads this once,
    # when torch is imported, so it is set before any subcommand runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        with handled_by(StopHandler()):
            # Not standalone: Typer then raises its usage errors, which are reported as all others.
            status = build_app(_completed_verb())(
                arguments, prog_name="bench", standalone_mode=False
            )
        sys.exit(status if isinstance(status, int) else 0)
    except _WRONG_USAGE as error:
        from ..tables.table import print_error
        from .usage import wrong_usage

        # `bench` alone shows its help, which is an error of Typer too.
        if typed:
            print_error(wrong_usage(error, typed))
        else:
            error.show()
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except UserFacingError as error:
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
            "  fix: run the command again as `bench --debug ...` and report the traceback",
            file=sys.stderr,
        )
        sys.exit(4)
