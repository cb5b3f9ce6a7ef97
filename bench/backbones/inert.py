"""Files that pickle whole Python objects, read as data: tensors and containers are rebuilt, everything else becomes a record
of what was asked for. Nothing that the file names is imported or called."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import BenchError

#: How files begin that torch.save wrote before it wrote zip archives: a pickle of its magic number.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

#: No checkpoint has a use for these; a file that names them was made to run something.
_HOSTILE_MODULES = {"os", "posix", "nt", "sys", "subprocess", "socket", "shutil", "runpy", "importlib", "ctypes", "pty", "code"}
_HOSTILE_BUILTINS = {"eval", "exec", "compile", "open", "input", "breakpoint", "__import__"}


class Inert:
    """What a pickle wanted to build or call, kept as data.

    Attributes:
        origin: the name that the pickle gave, such as `torch.nn.modules.linear.Linear`.
        arguments: what it was to be called with. state: what was to become its attributes, or None.
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

    def append(self, item: Any) -> None:
        """Items of what was a list."""

    def extend(self, items: Iterable[Any]) -> None:
        """Items of what was a list."""

    def add(self, item: Any) -> None:
        """Items of what was a set."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Entries of what was a mapping."""


class _Mapping(dict[Any, Any]):
    """In place of mappings that have attributes too, such as the `_metadata` of a state dict, which are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Call:
    """A function of ours that a pickle may call, and can neither look into nor change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change a function")


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *ignored: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor has no storage")
    return storage.as_strided(size, stride, offset)  # refuses what leads out of the storage


def _storage(data: bytes) -> Tensor:
    """A storage as a flat tensor."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=storage.dtype).set_(storage)


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *ignored: data,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "collections.OrderedDict": _Mapping,
    "collections.defaultdict": lambda *ignored: _Mapping(),
}


def _stub(name: str) -> type[Inert]:
    """A class that stands for `name`.

    Raises:
        BenchError: the name is one that only an attack has a use for.
    """
    module, _, function = name.rpartition(".")
    if module.split(".")[0] in _HOSTILE_MODULES or (module == "builtins" and function in _HOSTILE_BUILTINS):
        raise BenchError(f"the file asks for {name} when it is loaded, and no weights have a use for that; nothing of it was run")
    return type("Inert", (Inert,), {"origin": name})


class _Unpickler(pickle.Unpickler):
    """The standard one, which can reach nothing but what `find_class` hands it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._found: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._found:
            self._found[full] = _Call(_CALLS[full]) if full in _CALLS else _stub(full)
        return self._found[full]


def read_inert(path: Path) -> Any:
    """What a file written by torch.save or pickle holds, on the CPU, with `Inert` in place of whatever is no tensor or container.

    Raises:
        BenchError: the file asks for what only an attack has a use for, is a program (TorchScript), or cannot be read.
    """
    try:
        return _read(path)
    except BenchError as error:
        fix = error.fix or "ask whoever made it for the tensors alone, best as safetensors"
        raise BenchError(error.what, where=str(path), fix=fix) from None
    except Exception as error:  # a damaged or malicious pickle can raise anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchError(
            f"the weights cannot be read safely: {first}", where=str(path), fix="save a plain state dict, best as safetensors"
        ) from error


def _read(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(len(_LEGACY_TORCH)) == _LEGACY_TORCH:
                return torch.load(path, map_location="cpu", weights_only=True)
            file.seek(0)
            return _Unpickler(file).load()
    with zipfile.ZipFile(path) as archive:
        if any(Path(entry).name == "constants.pkl" for entry in archive.namelist()):
            raise BenchError(
                "this is a TorchScript archive, a program that would run while it is loaded",
                fix="OpenAI's own files are backbones: `bench run zero-shot --backbone open_clip:ViT-B-32/openai`; of others, "
                "save the state dict",
            )
    # torch's own restricted unpickler, with stubs under the names that it does not know.
    named: list[Any] = [
        (_fresh_mapping if name == "collections.defaultdict" else _stub(name), name)
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    ]
    with torch.serialization.safe_globals(named):
        return torch.load(path, map_location="cpu", weights_only=True)


def _fresh_mapping(*ignored: Any) -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict()


def module_state(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a pickled torch module: its parameters and persistent buffers by dotted name.

    Raises:
        BenchError: it is not a pickled module, or contains itself.
    """
    return dict(_tensors(module, prefix, ()))


def _tensors(module: Any, prefix: str, above: tuple[int, ...]) -> Iterable[tuple[str, Tensor]]:
    state = attributes(module)
    children = state.get("_modules")
    if not isinstance(children, dict) or id(module) in above:
        raise BenchError(f"{prefix.rstrip('.') or 'the file'} is not a torch module")
    passing = state.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else set()
    for kind, omitted in (("_parameters", set()), ("_buffers", passing)):
        for name, tensor in (state.get(kind) or {}).items():
            if isinstance(tensor, Tensor) and name not in omitted:
                yield f"{prefix}{name}", tensor.detach()
    for name, child in children.items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.", (*above, id(module)))


def modules(module: Any, prefix: str = "") -> Iterable[tuple[str, Inert]]:
    """A pickled torch module and all below it, by dotted name; call `module_state` first, which checks that this ends."""
    if isinstance(module, Inert):
        yield prefix, module
        for name, child in (attributes(module).get("_modules") or {}).items():
            yield from modules(child, f"{prefix}.{name}" if prefix else str(name))


def attributes(thing: Any) -> dict[str, Any]:
    """The attributes that a pickled object was to get; none if it is no object."""
    state = thing.state if isinstance(thing, Inert) else None
    return state if isinstance(state, dict) else {}
