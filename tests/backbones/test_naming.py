"""The grammar of backbone names: what is understood, and what is refused with which advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.backbones.naming import ModelName, parse
from bench.errors import MissingPrerequisite, UsageError

OPTIONS = ("size", "crop", "decoder", "quickgelu")


def read(rest: str, library: str = "open_clip") -> ModelName:
    return parse(library, rest, options=OPTIONS)


def test_a_name_is_an_architecture_weights_and_options(tmp_path: Path) -> None:
    file = tmp_path / "a@b?c.safetensors"
    file.touch()
    assert read("ViT-B-32/openai") == ModelName(
        "open_clip:ViT-B-32/openai", "ViT-B-32", "openai", None, None, {}
    )
    assert read("resnet50.a1_in1k", "timm").model == "resnet50.a1_in1k"
    assert read("RN50@random").seed == 0
    assert read("RN50@random-7").seed == 7
    name = read("ViT-B-32@random?size=128&crop=center")
    assert (name.size, name.choice("crop", ("center",)), name.model) == (128, "center", "ViT-B-32")
    assert parse("open_clip", f"RN50@{file}?size=64", options=OPTIONS).file == file
    assert [read(f"RN50@random{option}").decoder for option in ("", "?decoder=torchvision")] == [
        "pil",
        "torchvision",
    ]


def test_a_folder_is_a_name_that_starts_like_a_path() -> None:
    for folder in ("/models/x", "./x", "../x", "~/x"):
        assert read(folder).folder == Path(folder).expanduser()
    assert read("ViT-B-32/openai").folder is None


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "missing"),
        ("@random", "missing"),
        ("RN50?size", "NAME=VALUE"),
        ("RN50?size=1&size=2", "given once"),
        ("RN50?colour=1", "unknown option 'colour'"),
        ("RN50@best", "after @"),
        ("RN50@random-x", "after @"),
        ("RN50/openai@random", "both a tag and other weights"),
        ("RN50/folder/file.pt", "@FILE"),
        ("RN50/file.safetensors", "@FILE"),
        ("/folder@random", "its own weights"),
    ],
)
def test_what_is_no_name_is_refused_with_advice(rest: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        read(rest)
    assert refusal.value.fix
    assert rest in refusal.value.where


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "big", "1000000"])
def test_a_size_is_a_whole_number_of_pixels(size: str) -> None:
    with pytest.raises(UsageError, match="whole number"):
        _ = read(f"RN50@random?size={size}").size


def test_a_weight_file_that_is_not_there_is_a_missing_prerequisite(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="no weights file"):
        read(f"RN50@{tmp_path}/weights.pt")
