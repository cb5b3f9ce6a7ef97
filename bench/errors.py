"""The errors that are shown to users: what is wrong, where, and how to fix it.

Any other exception that reaches the user is a bug of ShiftBench.
"""

from __future__ import annotations


class UserFacingError(BaseException):
    """An error that is shown in three lines, without a traceback.

    Args:
        what: one sentence that says what is wrong.
        where: the file, option or plug-in that it is about.
        fix: what to do; a command where there is one.
    """

    # A BaseException, since an Interrupted must not be an Exception (see there), and both are shown
    # in the same way.

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        # All three are arguments of BaseException too, which is what pickle restores an error from:
        # errors of a trial come from another process.
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class BenchError(UserFacingError, Exception):
    """A failure that the user can act on."""


class UsageError(BenchError):
    """The command, a name or a parameter is wrong (exit code 2)."""

    exit_code = 2


class MissingPrerequisite(BenchError):
    """Data, weights or a package are missing (exit code 3); `fix` is the command to get them."""

    exit_code = 3


class NothingMatched(BenchError):
    """No row matches a filter (exit code 5)."""

    exit_code = 5


class Diverged(BenchError):
    """Training produced a value that is not finite."""


class EndedByPlugin(BenchError):
    """A plug-in tried to end the process; handled like any other error that it raises."""

    def __init__(self, error: BaseException) -> None:
        called = (
            f"sys.exit({error.code!r})"
            if isinstance(error, SystemExit)
            else f"{type(error).__name__} {error}".strip()
        )
        super().__init__(
            f"a plug-in tried to end the process: {called}", fix="raise an error instead"
        )


class Interrupted(UserFacingError):
    """A stop was requested (Ctrl-C, SIGTERM), and the state is saved; the same command continues.

    Like KeyboardInterrupt it is not an Exception: code that handles failures with `except
    Exception` must not treat a stop as one.

    Args:
        what: one sentence that says what is wrong.
        where: the file, option or plug-in that it is about.
        fix: what to do.
        signal: number of the signal; the exit code is 128 + signal, as shells expect.
    """

    def __init__(self, what: str, where: str = "", fix: str = "", *, signal: int = 2) -> None:
        super().__init__(what, where, fix)
        self.exit_code = 128 + signal
