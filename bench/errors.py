"""The errors that a user meets: what is wrong, where, what to do. Anything else is a bug in
ShiftBench.
"""

from __future__ import annotations


class Told(BaseException):
    """What is shown in three lines without a traceback.

    Args:
        what: one sentence on what is wrong.
        where: the file, option or plug-in that it concerns.
        fix: what to do, a command where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  to mend: {self.fix}")
        return "\n".join(lines)


class BenchError(Told, Exception):
    """A failure that the user can act on."""


class UsageError(BenchError):
    """The command, a name or a parameter is wrong (exit code 2)."""

    exit_code = 2


class MissingPrerequisite(BenchError):
    """Data, weights or a package that has to be there first (exit code 3); `fix` is the command
    that brings it.
    """

    exit_code = 3


class NothingMatched(BenchError):
    """A filter left nothing (exit code 5)."""

    exit_code = 5


class Diverged(BenchError):
    """Training produced a value that is not finite."""


class EndedByPlugin(BenchError):
    """Code of a plug-in wanted to end the whole process: a failure of its own, like any error that
    it raises.
    """

    def __init__(self, error: BaseException) -> None:
        called = (
            f"sys.exit({error.code!r})"
            if isinstance(error, SystemExit)
            else f"{type(error).__name__} {error}".strip()
        )
        super().__init__(
            f"a plug-in wanted to end the whole process: {called}", fix="raise an error instead"
        )


class Interrupted(Told):
    """A stop was asked for (Ctrl-C, SIGTERM) and the state is saved; the same command continues.

    Like KeyboardInterrupt it is no Exception, so that nothing which handles failures takes a stop
    for one.

    Args:
        signal: number of the signal, from which the exit code 128 + signal follows.
    """

    def __init__(self, what: str, where: str = "", fix: str = "", *, signal: int = 2) -> None:
        super().__init__(what, where, fix)
        self.exit_code = 128 + signal
