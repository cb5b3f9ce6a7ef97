"""Read pickled Python objects as data, without importing or calling anything that a file names.

Tensors and containers are rebuilt. Every other object becomes an `Inert`, which records the name
and the attributes that the pickle gave it. wise-ft and FLYP publish such files, and plain pickle
would run whatever they contain.
"""

from __future__ import annotations

import collections
import io
import itertools
import mmap
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import BenchError
from ..storage.files import not_weights
from ..storage.pickles import BoundedUnpickler, check_keys

#: First bytes of files that torch.save wrote before it used zip archives: a pickled magic number.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

#: No checkpoint needs these, so a file that names one was made to run something. The list is not
#: what protects: unknown names are not called either. It makes an attack an error of its own.
_HOSTILE_MODULES = {
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "socket",
    "shutil",
    "runpy",
    "importlib",
    "ctypes",
    "pty",
    "code",
}
_HOSTILE_BUILTINS = {"eval", "exec", "compile", "open", "input", "breakpoint", "__import__"}
#: Limits far beyond any model: modules in a file, their nesting, and characters of a tensor's name.
#: A shared module is listed once for each of its places, as torch does. Without limits, a file of
#: sixty levels that each contain the next one twice would never end.
_MOST_MODULES: Final = 100_000
_DEEPEST: Final = 64
LONGEST_NAME: Final = 1_000


class Inert:
    """An object that a pickle wanted to build, as data.

    Attributes:
        origin: name of the class or function, such as `torch.nn.modules.linear.Linear`.
        arguments: what it would have been called with.
        state: what would have become its attributes, or None.
    """

    origin = ""
    arguments: tuple[Any, ...]
    state: Any

    # Pickles build objects through `__new__`, `__init__`, or a call; all three record and do
    # nothing.

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any) -> Inert:
        """Stand in for the result of a call."""
        return type(self)(*arguments)

    # Subclasses of containers are unpickled by these methods. Their items are dropped.

    def append(self, item: Any) -> None:
        """Ignore an item of a list."""

    def extend(self, items: Iterable[Any]) -> None:
        """Ignore items of a list."""

    def add(self, item: Any) -> None:
        """Ignore an item of a set."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an entry of a mapping."""


class _Mapping(dict[Any, Any]):
    """A mapping that drops its attributes, such as the `_metadata` of a state dict."""

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *ignored: Any
) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor has no storage")
    # Raises if the size and stride lead out of the storage.
    return storage.as_strided(size, stride, offset)


def repeats_itself(tensor: Tensor) -> bool:
    """Return whether a tensor is larger than its memory, such as a terabyte in four bytes."""
    return (
        tensor.layout == torch.strided
        and not tensor.is_meta
        and tensor.nbytes > tensor.untyped_storage().nbytes()
    )


def _set(items: Iterable[Any] = ()) -> set[Any]:
    members = list(items)
    check_keys(members)
    return set(members)


def _mapping(items: Iterable[Any] = ()) -> _Mapping:
    entries = list(items.items() if isinstance(items, dict) else items)
    check_keys([key for key, _ in entries])
    return _Mapping(entries)


def _storage(data: bytes) -> Tensor:
    """Return a storage, which torch pickles as a file within the file, as a flat tensor."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=storage.dtype).set_(storage)


#: The functions that a pickle may call: name in the file -> what is called instead. Everything else
#: becomes an `Inert`.
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *ignored: data,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": tuple,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *ignored: _Mapping(),
}


def _stub(name: str) -> type[Inert]:
    """Return a class that stands for `name`.

    Raises:
        BenchError: only an attack would use this name.
    """
    module, _, function = name.rpartition(".")
    if module.split(".")[0] in _HOSTILE_MODULES or (
        module == "builtins" and function in _HOSTILE_BUILTINS
    ):
        raise BenchError(
            f"loading the file would use {name}, which no weights need; nothing of it was run"
        )
    # A class of its own for each name, since a pickle refers to classes and not to instances.
    return type("Inert", (Inert,), {"origin": name})


def _resolved(name: str) -> Callable[..., Any]:
    return _CALLS.get(name) or _stub(name)


def read_inert(path: Path) -> Any:
    """Return the content of a file of torch.save or pickle, with tensors on the CPU.

    Objects other than tensors and containers are replaced by `Inert`.

    Raises:
        BenchError: the file uses names that only an attack would, is a program (TorchScript), or
            cannot be read.
    """
    try:
        return _read(path)
    except BenchError as error:
        fix = error.fix or "ask its author for the tensors alone, preferably as safetensors"
        raise BenchError(error.what, where=str(path), fix=fix) from None
    # A damaged or malicious pickle can raise anything.
    except Exception as error:
        raise BenchError(
            f"the weights cannot be read safely: {reason(error)}",
            where=str(path),
            fix="save a plain state dict, preferably as safetensors",
        ) from error


def reason(error: Exception) -> str:
    """Return the first line of an error, without torch's advice to read the file unsafely."""
    first = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:300]
    return (
        "it contains Python objects other than tensors, which could run code"
        if "weights_only" in str(error)
        else first
    )


def _read(path: Path) -> Any:
    check_weights_file(path)
    # Three formats: a plain pickle, torch's old format, and torch's zip archive.
    if not zipfile.is_zipfile(path):
        # Mapped and not read: the unpickler copies what it needs, and most of a file is tensors.
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if data[: len(_LEGACY_TORCH)] != _LEGACY_TORCH:
            return BoundedUnpickler(data, _resolved).load()
        return torch.load(path, map_location="cpu", weights_only=True)
    # torch's own restricted unpickler refuses a file with unknown names. Stubs under these names
    # make it read the file all the same, and still nothing is imported or called.
    named: list[Any] = [
        (_fresh_mapping if name == "collections.defaultdict" else _stub(name), name)
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    ]
    with torch.serialization.safe_globals(named):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_weights_file(path: Path) -> None:
    """Refuse what torch's restricted reader accepts: programs, and files that unpack to far more.

    Raises:
        BenchError: the file is something else, such as a web page; it is TorchScript; its members
            are compressed, which torch.save never does, or overlap; its pickle uses names that only
            an attack would.
        UnpicklingError: its pickle builds far more than it contains.
    """
    if why := not_weights(path):
        raise BenchError(f"this is not a weights file: {why}", fix="download the file again")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # Only TorchScript archives have this member. OpenAI published CLIP as such files.
        if any(PurePosixPath(member.filename).name == "constants.pkl" for member in members):
            raise BenchError(
                "this is a TorchScript archive, a program that would run while it is loaded",
                fix=(
                    "for OpenAI's models, use the backbone: `bench run zero-shot --backbone"
                    " open_clip:ViT-B-32/openai`; for others, save the state dict"
                ),
            )
        # Compressed or overlapping members are how a small file becomes a huge one in memory.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise BenchError(
                "it is a compressed archive, which torch.save never writes",
                fix="unpack it, and pass the weights in it",
            )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise BenchError("the files in it overlap", fix="download the file again")
        for member in members:
            if PurePosixPath(member.filename).name == "data.pkl":
                _Dry(archive.read(member), _dry).load()


class _Dry(BoundedUnpickler):
    """A dry run of the pickle in a zip archive, which bounds its cost before torch reads it."""

    def persistent_load(self, pid: Any) -> None:
        """Return nothing for a tensor's memory, which is in other members of the archive."""


def _dry(name: str) -> Callable[..., Any]:
    return {"builtins.set": _set, "collections.OrderedDict": _mapping}.get(name) or _stub(name)


def _fresh_mapping(*ignored: Any) -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict()


def module_state(module: Any) -> dict[str, Tensor]:
    """Return the state dict of a pickled torch module: its parameters and persistent buffers.

    Raises:
        BenchError: it is not a pickled module, contains itself, or is far larger than any model.
    """
    return {
        f"{prefix}.{name}" if prefix else str(name): tensor.detach()
        for prefix, found in modules(module)
        for name, tensor in _own_tensors(attributes(found))
    }


def _own_tensors(state: dict[str, Any]) -> Iterable[tuple[str, Tensor]]:
    transient = state.get("_non_persistent_buffers_set")
    transient = transient if isinstance(transient, set) else set()
    for kind, omitted in (("_parameters", set()), ("_buffers", transient)):
        tensors = state.get(kind)
        for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
            if isinstance(tensor, Tensor) and name not in omitted:
                yield name, tensor


def modules(module: Any) -> Iterable[tuple[str, Any]]:
    """Yield a pickled torch module and all modules in it, with their dotted names.

    Raises:
        BenchError: see `module_state`.
    """
    pending: list[tuple[str, Any, int]] = [("", module, 0)]
    for count in itertools.count():
        if not pending:
            return
        prefix, found, depth = pending.pop()
        children = attributes(found).get("_modules")
        if not isinstance(children, dict):
            raise BenchError(f"{prefix or 'the file'} is not a torch module")
        if count == _MOST_MODULES or depth == _DEEPEST or len(prefix) > LONGEST_NAME:
            raise BenchError(
                "its modules contain themselves, or are more, or nested deeper, than in any model"
            )
        yield prefix, found
        below = [
            (f"{prefix}.{name}" if prefix else str(name), child, depth + 1)
            for name, child in children.items()
        ]
        # Reversed, so that modules come off the stack in torch's order.
        pending += [entry for entry in reversed(below) if entry[1] is not None]


def attributes(thing: Any) -> dict[str, Any]:
    """Return the attributes of a pickled object; an empty mapping if it is something else."""
    state = thing.state if isinstance(thing, Inert) else None
    return state if isinstance(state, dict) else {}
