"""Unpickle untrusted files safely: no imports, and cost bounded by the file's size."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

#: Opcodes that files of weights or images do not need, and that allocate by a number in the file
#: or look it up in a registry, instead of reading data that is there.
_LEFT_OUT: Final = (
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
)
#: Types of dictionary keys and set members; tuples of these are allowed too. Nested tuples are not:
#: hashing visits everything in a key, and sixty tuples that each contain the previous one twice
#: take 2**60 visits.
_KEYS: Final = (str, bytes, int, float, bool, type(None))


#: Largest number of reads of one pickle, which takes a few per object. CIFAR's batches take 80,000;
#: this many take ten seconds.
_MOST_PIECES: Final = 10_000_000


class _Source:
    """The bytes of a pickle as a file that never returns or allocates more than there is."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at, self._pieces = data, 0, 0

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes."""
        self._pieces += 1
        if self._pieces > _MOST_PIECES:
            raise pickle.UnpicklingError(f"it takes more than {_MOST_PIECES:,} reads")
        # A slice ends with the data, so a pickle that claims a terabyte allocates nothing.
        read = bytes(self._data[self._at : self._at + size])
        self._at += len(read)
        return read

    def readline(self) -> bytes:
        """Return the bytes up to and including the next line break."""
        # A memoryview cannot search. In blocks of 4 KiB, since copying the rest of the file for
        # every line would make the cost quadratic.
        end = self._at
        while end < len(self._data):
            more = bytes(self._data[end : end + (1 << 12)])
            if (found := more.find(b"\n")) >= 0:
                end += found + 1
                break
            end += len(more)
        return self.read(end - self._at)


#: The unpickler written in Python. The one in C saves objects in an array as long as the largest
#: index that the pickle names, so a few bytes can allocate gigabytes; here it is a dictionary.
_Unpickler: Any = pickle._Unpickler


class BoundedUnpickler(_Unpickler):  # type: ignore[misc]
    """An unpickler that calls only the functions that it is given.

    Args:
        data: the pickle.
        resolve: returns the function or type to use for a name such as `torch.Size`. Functions are
            called with plain data, results of other functions, and dictionaries and lists of those;
            the arguments of all calls together may not be longer than the pickle.
        encoding: encoding of strings that Python 2 wrote.
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
        """Return the function or type for a name; called by the base class."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._resolved:
            found = self._resolve(full)
            # Types stay bare, since the base class constructs objects by `cls.__new__`.
            self._resolved[full] = found if isinstance(found, type) else Counted(found, self._spend)
        return self._resolved[full]

    def _spend(self, arguments: Sequence[Any]) -> None:
        # A saved object can be passed again for two bytes, so without a budget a small pickle could
        # copy a large list forever. Tensors are not counted: their memory is not in the pickle.
        self._left -= sum(
            len(one) for one in arguments if hasattr(one, "__len__") and not hasattr(one, "numel")
        )
        if self._left < 0:
            raise pickle.UnpicklingError("it builds far more than it holds")

    def load_frame(self) -> None:
        """Skip the length of a frame."""
        # A length is a hint to read ahead, and the base class would trust it.
        self.read(8)

    # Each method below handles an opcode that hashes, and checks the keys first. The base class has
    # put the objects since the mark on `self.stack`: keys and values in turn, or members.

    def load_setitem(self) -> None:
        """Set one entry of a dictionary."""
        check_keys(self.stack[-2:-1])
        _Unpickler.load_setitem(self)

    def load_setitems(self) -> None:
        """Set the entries since the mark."""
        check_keys(self.stack[::2])
        _Unpickler.load_setitems(self)

    def load_dict(self) -> None:
        """Build a dictionary of the entries since the mark."""
        check_keys(self.stack[::2])
        _Unpickler.load_dict(self)

    def load_additems(self) -> None:
        """Add the members since the mark to a set."""
        check_keys(self.stack)
        _Unpickler.load_additems(self)

    def load_frozenset(self) -> None:
        """Build a frozen set of the members since the mark."""
        check_keys(self.stack)
        _Unpickler.load_frozenset(self)

    # The base class looks opcodes up in this table, so overriding the methods alone does nothing.
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
    """A function that a pickle may call but not inspect or change.

    Args:
        function: the function to call.
        spend: called first with the arguments of each call; may raise.
    """

    # Without a `__dict__` a pickle cannot set attributes.
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
    """Check that keys are plain values or tuples of them, so that hashing them is cheap.

    Raises:
        UnpicklingError: a key is of another type.
    """
    for key in keys:
        for part in key if type(key) is tuple else (key,):
            # The exact type: a subclass may hash in its own way.
            if type(part) not in _KEYS:
                raise pickle.UnpicklingError(
                    f"a {type(part).__name__} is not allowed as a dictionary key"
                )
