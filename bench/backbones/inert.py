"""Files that pickle whole Python objects, read as data: tensors and containers are rebuilt,
everything else becomes a record of what was asked for. Nothing that the file names is imported or
called.
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

#: How files begin that torch.save wrote before it wrote zip archives: a pickle of its magic number.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

#: No checkpoint has a use for these; a file that names them was made to run something.
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
#: Far beyond any model: modules in a file, one in another, and letters of a tensor's name. A module
#: of ours that is shared is named once for each place, as torch does; one that holds the same two
#: in each of sixty levels would never end.
_MOST_MODULES: Final = 100_000
_DEEPEST: Final = 64
LONGEST_NAME: Final = 1_000


class Inert:
    """What a pickle wanted to build or call, kept as data.

    Attributes:
        origin: the name that the pickle gave, such as `torch.nn.modules.linear.Linear`.
        arguments: what it was to be called with.
        state: what was to become its attributes, or None.
    """

    origin = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any) -> Inert:
        """What was made was to be called."""
        return type(self)(*arguments)

    def append(self, item: Any) -> None:
        """Items of what was a list."""

    def extend(self, items: Iterable[Any]) -> None:
        """Items of what was a list."""

    def add(self, item: Any) -> None:
        """Items of what was a set."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Entries of what was a mapping."""


class _Mapping(dict[Any, Any]):
    """In place of mappings that have attributes too, such as the `_metadata` of a state dict, which
    are dropped.
    """

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *ignored: Any
) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor has no storage")
    return storage.as_strided(size, stride, offset)  # refuses what leads out of the storage


def repeats_itself(tensor: Tensor) -> bool:
    """Whether a tensor has more numbers than the memory that it points to: four bytes may claim to
    be a terabyte.
    """
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
    """A storage as a flat tensor."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=storage.dtype).set_(storage)


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
    """A class that stands for `name`.

    Raises:
        BenchError: the name is one that only an attack has a use for.
    """
    module, _, function = name.rpartition(".")
    if module.split(".")[0] in _HOSTILE_MODULES or (
        module == "builtins" and function in _HOSTILE_BUILTINS
    ):
        raise BenchError(
            f"the file asks for {name} when it is loaded, and no weights have a use for that;"
            " nothing of it was run"
        )
    return type("Inert", (Inert,), {"origin": name})


def _resolved(name: str) -> Callable[..., Any]:
    return _CALLS.get(name) or _stub(name)


def read_inert(path: Path) -> Any:
    """What a file written by torch.save or pickle holds, on the CPU, with `Inert` in place of
    whatever is no tensor or container.

    Raises:
        BenchError: the file asks for what only an attack has a use for, is a program (TorchScript),
            or cannot be read.
    """
    try:
        return _read(path)
    except BenchError as error:
        fix = error.fix or "ask whoever made it for the tensors alone, best as safetensors"
        raise BenchError(error.what, where=str(path), fix=fix) from None
    except Exception as error:  # a damaged or malicious pickle can raise anything
        raise BenchError(
            f"the weights cannot be read safely: {reason(error)}",
            where=str(path),
            fix="save a plain state dict, best as safetensors",
        ) from error


def reason(error: Exception) -> str:
    """The first line of an error, but no advice to read the file unsafely."""
    first = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:300]
    return (
        "it holds Python objects other than tensors, which could run code"
        if "weights_only" in str(error)
        else first
    )


def _read(path: Path) -> Any:
    check_weights_file(path)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if data[: len(_LEGACY_TORCH)] != _LEGACY_TORCH:
            return BoundedUnpickler(data, _resolved).load()
        return torch.load(path, map_location="cpu", weights_only=True)
    # torch's own restricted unpickler, with stubs under the names that it does not know.
    named: list[Any] = [
        (_fresh_mapping if name == "collections.defaultdict" else _stub(name), name)
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    ]
    with torch.serialization.safe_globals(named):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_weights_file(path: Path) -> None:
    """Check what torch's restricted reader does not: that a zip archive of torch.save is no
    program, and what it unpacks to.

    Raises:
        BenchError: it is something else, such as a web page; it is TorchScript; members are
            compressed, which torch.save never does, or overlap; its pickle asks for what only an
            attack has a use for.
        UnpicklingError: its pickle builds far more than it holds.
    """
    if why := not_weights(path):
        raise BenchError(f"this is no file of weights: {why}", fix="fetch the file again")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(PurePosixPath(member.filename).name == "constants.pkl" for member in members):
            raise BenchError(
                "this is a TorchScript archive, a program that would run while it is loaded",
                fix=(
                    "OpenAI's own files are backbones: `bench run zero-shot --backbone"
                    " open_clip:ViT-B-32/openai`; of others, save the state dict"
                ),
            )
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise BenchError(
                "it is a compressed archive, and torch.save makes none",
                fix="unpack it, and name the weights in it",
            )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise BenchError("the files in it overlap", fix="fetch the file again")
        for member in members:
            if PurePosixPath(member.filename).name == "data.pkl":
                _Dry(archive.read(member), _dry).load()


class _Dry(BoundedUnpickler):
    """Goes through the pickle of a zip archive without its tensors."""

    def persistent_load(self, pid: Any) -> None:
        """The tensors' memory lies elsewhere."""


def _dry(name: str) -> Callable[..., Any]:
    return {"builtins.set": _set, "collections.OrderedDict": _mapping}.get(name) or _stub(name)


def _fresh_mapping(*ignored: Any) -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict()


def module_state(module: Any) -> dict[str, Tensor]:
    """The state dict of a pickled torch module: its parameters and persistent buffers by dotted
    name.

    Raises:
        BenchError: it is not a pickled module, contains itself, or is far larger than any model.
    """
    return {
        f"{prefix}.{name}" if prefix else str(name): tensor.detach()
        for prefix, found in modules(module)
        for name, tensor in _own_tensors(attributes(found))
    }


def _own_tensors(state: dict[str, Any]) -> Iterable[tuple[str, Tensor]]:
    passing = state.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else set()
    for kind, omitted in (("_parameters", set()), ("_buffers", passing)):
        tensors = state.get(kind)
        for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
            if isinstance(tensor, Tensor) and name not in omitted:
                yield name, tensor


def modules(module: Any) -> Iterable[tuple[str, Any]]:
    """A pickled torch module and all below it, by dotted name.

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
                "its modules contain themselves, or are more, or deeper in each other, than any"
                " model's"
            )
        yield prefix, found
        below = [
            (f"{prefix}.{name}" if prefix else str(name), child, depth + 1)
            for name, child in children.items()
        ]
        pending += [entry for entry in reversed(below) if entry[1] is not None]


def attributes(thing: Any) -> dict[str, Any]:
    """The attributes that a pickled object was to get; none if it is no object."""
    state = thing.state if isinstance(thing, Inert) else None
    return state if isinstance(state, dict) else {}
