"""Small files that claim to be large ones are told as that, quickly, and cost no more memory than
they hold.
"""

from __future__ import annotations

import pickle
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.runs.checkpoints import read_checkpoint


def nested(levels: int, two: Callable[[nn.Module], nn.Module]) -> nn.Module:
    module: nn.Module = nn.Identity()
    for _ in range(levels):
        module = two(module)
    return module


def of_two(child: nn.Module) -> nn.Module:
    return nn.Sequential(child, child)


def long_name(child: nn.Module) -> nn.Module:
    made = nn.Module()
    made._modules["x" * 500] = child
    return made


def doubled(levels: int) -> bytes:
    """A pickle of a mapping whose key is a pair of the same pair twice, and so on."""
    pairs = b"".join(
        bytes([ord("h"), level, ord("h"), level, 0x86, ord("q"), level + 1])
        for level in range(levels)
    )
    return b"\x80\x02})q\x00" + pairs + b"Ns."


def copied(times: int) -> bytes:
    """A pickle that makes a set of the same thousand numbers again and again."""
    numbers = b"".join(b"K" + bytes([n % 256]) for n in range(1000))
    call = b"cbuiltins\nset\nq\x01h\x00\x85R0"
    return b"\x80\x02](" + numbers + b"eq\x00" + call + b"h\x01h\x00\x85R0" * times + b"."


PICKLES = {
    "memo": (b"\x80\x02Nr\xff\xff\xff\xff.", "NoneType instead of a classifier"),
    "bytes": (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "cannot be read safely"),
    "bytearray": (
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
        "cannot be read safely",
    ),
    "frame": (b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.", "instead of a classifier"),
    "key": (doubled(60), "a tuple is not allowed as a dictionary key"),
    "copies": (copied(100_000), "it builds far more than it holds"),
    "shared modules": (
        pickle.dumps(nested(60, of_two)),
        "more, or nested deeper, than in any model",
    ),
    "shared modules, few levels": (
        pickle.dumps(nested(30, of_two)),
        "more, or nested deeper, than in any model",
    ),
    "long names": (pickle.dumps(nested(60, long_name)), "nested deeper"),
    "modules for ever": (
        pickle.dumps(nested(100, lambda child: nn.Sequential(child))),
        "nested deeper",
    ),
    "nothing": (b"", "this is not a weights file: it is empty"),
}


@pytest.mark.parametrize("name", list(PICKLES))
def test_a_pickle_costs_no_more_than_it_holds(name: str, tmp_path: Path) -> None:
    content, shown = PICKLES[name]
    (tmp_path / "weights.pkl").write_bytes(content)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(BenchError, match=shown):
        read_checkpoint(tmp_path / "weights.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert time.thread_time() - start < 10


def test_a_shared_module_is_named_at_each_of_its_places(tmp_path: Path) -> None:
    shared = nn.Linear(2, 2)
    module = nn.Module()
    module.tower, module.head = nn.Sequential(shared, nn.ReLU(), shared), nn.Linear(2, 3)
    torch.save(module, tmp_path / "weights.pt")
    found = read_checkpoint(tmp_path / "weights.pt")
    assert found.tower.keys() == module.state_dict().keys()
    assert all(
        torch.equal(tensor, found.tower[name]) for name, tensor in module.state_dict().items()
    )


@pytest.mark.parametrize("whole", [True, False], ids=["torch", "pickle"])
def test_a_tensor_that_repeats_its_memory(whole: bool, tmp_path: Path) -> None:
    state: dict[str, Tensor] = {
        "tower.weight": torch.zeros(1).expand(10**6, 10**6),
        "head.weight": torch.zeros(3, 4),
    }
    if whole:
        torch.save(state, tmp_path / "weights.pt")
    else:
        (tmp_path / "weights.pt").write_bytes(pickle.dumps(state))
    assert (tmp_path / "weights.pt").stat().st_size < 5000
    with pytest.raises(
        BenchError,
        match=r"tower.weight claims the shape \(1000000, 1000000\)",
    ):
        read_checkpoint(tmp_path / "weights.pt")


def test_an_archive_of_weights_is_not_compressed(tmp_path: Path) -> None:
    torch.save({"tower.weight": torch.zeros(3, 4)}, tmp_path / "weights.pt")
    with (
        zipfile.ZipFile(tmp_path / "weights.pt") as made,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for member in made.infolist():
            small.writestr(member.filename, made.read(member) + bytes(1 << 20))
    with pytest.raises(BenchError, match="it is a compressed archive"):
        read_checkpoint(tmp_path / "small.pt")


def test_keys_of_an_archive_are_hashed_in_no_time(tmp_path: Path) -> None:
    torch.save({"tower.weight": torch.zeros(3, 4)}, tmp_path / "weights.pt")
    with (
        zipfile.ZipFile(tmp_path / "weights.pt") as made,
        zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil,
    ):
        for member in made.infolist():
            evil.writestr(
                member.filename,
                doubled(60) if member.filename.endswith("data.pkl") else made.read(member),
            )
    with pytest.raises(BenchError, match="a tuple is not allowed as a dictionary key"):
        read_checkpoint(tmp_path / "evil.pt")


def test_numbers_of_pixels_alone_are_read_from_cifar_s_pickles(tmp_path: Path) -> None:
    from bench.data.readers.arrays import _cifar_batch

    rng = np.random.default_rng(0)
    pixels, labels = (
        rng.integers(0, 256, (20, 3072), dtype=np.uint8),
        rng.integers(0, 100, 20).tolist(),
    )
    for names in ((b"data", b"labels"), ("data", "fine_labels")):
        for protocol in (0, 2, 4):
            (tmp_path / "batch").write_bytes(
                pickle.dumps(dict(zip(names, (pixels, labels), strict=True)), protocol)
            )
            found = _cifar_batch(tmp_path / "batch")
            np.testing.assert_array_equal(found[0], pixels)
            np.testing.assert_array_equal(found[1], labels)
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": np.array([print]), "labels": labels}))
    with pytest.raises(pickle.UnpicklingError, match="not a type of pixels"):
        _cifar_batch(tmp_path / "batch")
