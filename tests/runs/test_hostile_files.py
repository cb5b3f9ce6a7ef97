"""Weights files that were made to run something, or are none: nothing of them runs, and the error
says what they are.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.errors import BenchError

from support.foreign_checkpoints import loaded


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def _plain(thing: object, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(thing, file)


def _by_torch(thing: object, path: Path) -> None:
    torch.save(thing, path)


def _before_zip(thing: object, path: Path) -> None:
    torch.save(thing, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("nested", ["bare", "in a state dict", "as an argument"])
@pytest.mark.parametrize("write", [_plain, _by_torch, _before_zip])
@pytest.mark.parametrize("kind", ["os.system", "eval", "exec", "import"])
def test_a_hostile_file_runs_nothing(
    kind: str,
    write: Callable[[object, Path], None],
    nested: str,
    tiny_suite: Path,
    backbone: str,
    tmp_path: Path,
) -> None:
    mark = tmp_path / "pwned"
    code = f"open({str(mark)!r}, 'w').close()"
    call = {
        "os.system": Runs(os.system, f"touch {mark}"),
        "eval": Runs(eval, code),
        "exec": Runs(exec, code),
        "import": Runs(__import__, "antigravity"),
    }[kind]
    thing: object = {
        "bare": call,
        "in a state dict": {
            "state_dict": {"visual.proj": torch.zeros(2)},
            "epoch": [{"hooks": call}],
        },
        "as an argument": Runs(dict, [("a", Runs(list, (call,)))]),
    }[nested]
    write(thing, tmp_path / "evil.pt")
    with pytest.raises(BenchError) as caught:
        loaded(tmp_path / "evil.pt", tiny_suite, backbone, tmp_path)
    assert not mark.exists()
    assert "antigravity" not in sys.modules
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert str(tmp_path / "evil.pt") in lines[1]
    if write is not _before_zip:
        assert "which no weights need; nothing of it was run" in lines[0]


def test_names_that_are_not_known_to_be_hostile_are_not_called_either(tmp_path: Path) -> None:
    from bench.backbones.inert import Inert, read_inert

    _plain(
        {"a": Runs(os.path.join, "x", "y"), "b": Runs(getattr, "text", "upper")},
        tmp_path / "odd.pkl",
    )
    held = read_inert(tmp_path / "odd.pkl")
    assert isinstance(held["a"], Inert)
    assert (held["a"].origin, held["a"].arguments) == ("posixpath.join", ("x", "y"))
    assert (held["b"].origin, held["b"].arguments) == ("builtins.getattr", ("text", "upper"))


def test_a_file_cannot_change_what_it_is_given(tmp_path: Path) -> None:
    """BUILD sets attributes: on a class, on a function that may be called, and on an ordered
    dict.
    """
    from collections import OrderedDict

    from bench.backbones.inert import read_inert

    # GLOBAL module name, a state of (None, {"__doc__": 1}), BUILD, STOP.
    def build(
        name: bytes,
    ) -> bytes:
        return b"\x80\x02c" + name + b"\nN}X\x07\x00\x00\x00__doc__K\x01s\x86b."

    before = OrderedDict.__doc__, torch._utils._rebuild_tensor_v2.__doc__, nn.Linear.__doc__
    for name in (
        b"torch._utils\n_rebuild_tensor_v2",
        b"collections\nOrderedDict",
        b"torch.nn.modules.linear\nLinear",
    ):
        (tmp_path / "odd.pkl").write_bytes(build(name))
        with pytest.raises(BenchError, match="cannot be read safely"):
            read_inert(tmp_path / "odd.pkl")
    assert before == (
        OrderedDict.__doc__,
        torch._utils._rebuild_tensor_v2.__doc__,
        nn.Linear.__doc__,
    )


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    from bench.backbones.inert import read_inert

    tensor = torch.zeros(4)
    rebuilt = Runs(
        torch._utils._rebuild_tensor_v2, tensor._typed_storage(), 2, (1000,), (1,), False, {}
    )
    _plain(rebuilt, tmp_path / "odd.pkl")
    with pytest.raises(BenchError, match="out of bounds"):
        read_inert(tmp_path / "odd.pkl")


def test_a_module_within_itself(tmp_path: Path, tiny_suite: Path, backbone: str) -> None:
    module = nn.Sequential()
    module._modules["again"] = module
    _plain(module, tmp_path / "odd.pkl")
    with pytest.raises(BenchError, match="contain themselves"):
        loaded(tmp_path / "odd.pkl", tiny_suite, backbone, tmp_path)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", "this is not a weights file: it is empty"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "this is not a weights file: it is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "a server's message in XML"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            "it is a pointer of Git LFS: `git lfs pull`",
        ),
        (b"PK\x03\x04 broken", "it is the beginning of a zip archive: its end is missing"),
        (b"\x1f\x8b\x08 rest", "it is compressed: unpack it"),
        (b"\x80\x04", "cannot be read safely"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_weights_file_at_all(
    content: bytes, shown: str, suffix: str, tmp_path: Path, tiny_suite: Path, backbone: str
) -> None:
    (tmp_path / f"odd{suffix}").write_bytes(content)
    with pytest.raises(
        BenchError, match=shown if suffix == ".pt" or content[:1] != b"\x80" else "cannot be read"
    ) as raised:
        loaded(tmp_path / f"odd{suffix}", tiny_suite, backbone, tmp_path)
    assert "weights_only" not in str(raised.value)


def test_weights_that_were_not_downloaded_whole(
    tmp_path: Path, tiny_suite: Path, backbone: str
) -> None:
    from safetensors.torch import save_file

    save_file({"tower.weight": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(content[:2000])
    with pytest.raises(
        BenchError, match=f"its end is missing: it has 2,000 of {len(content):,} bytes"
    ):
        loaded(tmp_path / "half.safetensors", tiny_suite, backbone, tmp_path)
