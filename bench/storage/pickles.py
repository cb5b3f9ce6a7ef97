"""Pickles from strangers, read as data: nothing that they name is imported, and what they cost is
bounded by their size.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

#: Of no use in files of weights or images, and all allocate by a number instead of by what is
#: there.
_LEFT_OUT: Final = (
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
)
#: What keys of mappings and members of sets may be, or tuples of it. Hashing walks through all that
#: a key holds, and a tuple that holds the same tuple twice, and so on for sixty tuples, is never
#: done.
_KEYS: Final = (str, bytes, int, float, bool, type(None))


#: Pieces that a pickle is read in, a few for each thing in it: CIFAR's batches have 80,000. As many
#: as this take ten seconds.
_MOST_PIECES: Final = 10_000_000


class _Source:
    """The bytes of a pickle as a file that never gives, nor allocates, more than is there."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at, self._pieces = data, 0, 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        self._pieces += 1
        if self._pieces > _MOST_PIECES:
            raise pickle.UnpicklingError(f"it is made of more than {_MOST_PIECES:,} pieces")
        read = bytes(self._data[self._at : self._at + size])
        self._at += len(read)
        return read

    def readline(self) -> bytes:
        """Up to the next line's begin."""
        end = self._at
        while end < len(self._data):
            more = bytes(self._data[end : end + (1 << 12)])
            if (found := more.find(b"\n")) >= 0:
                end += found + 1
                break
            end += len(more)
        return self.read(end - self._at)


#: The one written in Python: the C one keeps a table of as many entries as the largest number that
#: a pickle names.
_Unpickler: Any = pickle._Unpickler


class BoundedUnpickler(_Unpickler):  # type: ignore[misc]
    """Read a pickle with nothing but the given functions.

    Args:
        data: the pickle.
        encoding: of strings that Python 2 wrote.
        resolve: what stands for a name such as `torch.Size`. A function gets plain data, results of
            other functions, or mappings and lists of those; all that functions are given together
            may be no longer than the pickle.
    """

    def __init__(
        self,
        data: bytes | memoryview,
        resolve: Callable[[str], Callable[..., Any]],
        encoding: str = "ASCII",
    ) -> None:
        view = memoryview(data)
        super().__init__(_Source(view), encoding=encoding)
        self._resolve, self._left = resolve, len(view)
        self._resolved: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._resolved:
            found = self._resolve(full)
            self._resolved[full] = found if isinstance(found, type) else Counted(found, self._spend)
        return self._resolved[full]

    def _spend(self, arguments: Sequence[Any]) -> None:
        self._left -= sum(
            len(one) for one in arguments if hasattr(one, "__len__") and not hasattr(one, "numel")
        )
        if self._left < 0:
            raise pickle.UnpicklingError("it builds far more than it holds")

    def load_frame(self) -> None:
        """Frames only say how much to read ahead."""
        self.read(8)

    def load_setitem(self) -> None:
        """One entry."""
        check_keys(self.stack[-2:-1])
        _Unpickler.load_setitem(self)

    def load_setitems(self) -> None:
        """Entries since the mark."""
        check_keys(self.stack[::2])
        _Unpickler.load_setitems(self)

    def load_dict(self) -> None:
        """A mapping of the entries since the mark."""
        check_keys(self.stack[::2])
        _Unpickler.load_dict(self)

    def load_additems(self) -> None:
        """Members since the mark."""
        check_keys(self.stack)
        _Unpickler.load_additems(self)

    def load_frozenset(self) -> None:
        """A set of the members since the mark."""
        check_keys(self.stack)
        _Unpickler.load_frozenset(self)

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: load
        for code, load in _Unpickler.dispatch.items()
        if code not in {one[0] for one in _LEFT_OUT}
    } | {
        pickle.FRAME[0]: load_frame,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }


class Counted:
    """A function that a pickle may call, and can neither look into nor change."""

    __slots__ = ("_function", "_spend")

    def __init__(
        self, function: Callable[..., Any], spend: Callable[[Sequence[Any]], None]
    ) -> None:
        self._function, self._spend = function, spend

    def __call__(self, *arguments: Any) -> Any:
        self._spend(arguments)
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change a function")


def check_keys(keys: Sequence[Any]) -> None:
    """Raise UnpicklingError unless all are plain values, or tuples of them."""
    for key in keys:
        for part in key if type(key) is tuple else (key,):
            if type(part) not in _KEYS:
                raise pickle.UnpicklingError(f"a {type(part).__name__} is no key of a mapping")
