"""Datasets that ask for more than they hold, or are no files: told at once, in bounded memory."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.cli import main
from bench.data.readers.archive import archives_at, expanded, index_archive
from bench.data.readers.folder import index_folder
from bench.errors import BenchError, UsageError

from support.arrays import CARD, LABELS, PIXELS, saved, verify


def tar_of(members: dict[str, bytes], names: str = "utf-8") -> bytes:
    file = io.BytesIO()
    with tarfile.open(None, "w", file, encoding=names, errors="surrogateescape") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize(
    "pattern", ["{0..999999999}.tar", "{000..999}{000..999}", "{0..9}" * 40, "{1..9}" * 6]
)
def test_a_pattern_stands_for_no_more_files_than_there_are(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than 100,000 files"):
        archives_at(tmp_path, pattern)


def test_all_folders_are_gone_through_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has \*\* more than once"):
        archives_at(tmp_path, "**/**/**/*.tar")


@pytest.mark.parametrize(
    "pattern", ["{0..99999999999}", "{" + "0" * 10**6 + "..1}", "{}", "{a..b}"]
)
def test_what_is_no_range_is_a_name(pattern: str) -> None:
    assert expanded(pattern) == [pattern]


def test_ranges_in_a_pattern() -> None:
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{0..1}-{3..4}") == ["0-3", "0-4", "1-3", "1-4"]
    assert expanded("{5..4}") == []


@pytest.mark.parametrize("part", ["x.npy", "y.npy"])
def test_arrays_that_are_pipes(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = saved(tmp_path, PIXELS, LABELS)
    (tmp_path / "d" / part).unlink()
    os.mkfifo(tmp_path / "d" / part)
    code, shown = verify(card, capsys)
    assert code == (1 if part == "y.npy" else code)
    assert "pipe" in shown or "nothing of `test`" in shown


def test_a_card_that_is_a_pipe_or_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    for name, message in (
        ("pipe.toml", "is a pipe"),
        ("zero.toml", "is a device"),
    ):
        code, shown = verify(tmp_path / name, capsys)
        assert code in (1, 2), shown
        assert message in " ".join(shown.split())


def test_images_that_are_pipes_or_devices_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "b.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "cat" / "notes.txt")
    index = index_folder(tmp_path, "", cache=tmp_path / "cache-of-it")
    assert dict(zip(index["key"], index["problem"], strict=True)) == {
        "cat/a.png": "pipe or device",
        "cat/b.png": "pipe or device",
        "cat/notes.txt": "other file",
    }


def test_weights_and_packs_that_are_pipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for command in (
        ["merge", str(tmp_path / "pipe")],
        ["evaluate", str(tmp_path / "pipe"), "--suite", "mini-shifts"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--store", str(tmp_path / "store")])
        assert ended.value.code == 3, command
        assert "is a pipe" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_an_npz_file_that_unpacks_to_far_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d").mkdir()
    with zipfile.ZipFile(tmp_path / "d" / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("images", "labels"):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "|u1", "fortran_order": False, "shape": (3000, 256, 256, 3)}
                )
                for _ in range(300):
                    file.write(bytes(1 << 20))
    assert (tmp_path / "d" / "x.npz").stat().st_size < 1 << 20
    (tmp_path / "ds.toml").write_text(
        CARD.replace('path = "x.npy", labels = "y.npy"', 'path = "x.npz"')
    )
    code, shown = verify(tmp_path / "ds.toml", capsys)
    assert code == 1
    assert "it would unpack to 629,145," in " ".join(shown.split())


class TestTars:
    def index(self, content: bytes, folder: Path) -> pd.DataFrame:
        (folder / "a.tar").write_bytes(content)
        return index_archive(folder / "a.tar", read=True, cache=folder / "cache")

    def test_a_name_that_is_no_unicode(self, tmp_path: Path) -> None:
        with pytest.raises(BenchError, match=r"not valid Unicode: 'cat/caf\\udce9.png'"):
            self.index(tar_of({"cat/caf\udce9.png": b"x"}), tmp_path)

    def test_archives_lie_in_archives_once(self, tmp_path: Path) -> None:
        content = tar_of({"a.png": b"x"})
        for level in range(3):
            content = tar_of({f"{level}.tar": content})
        with pytest.raises(BenchError, match=r"nested .*1\.tar is in 2\.tar"):
            self.index(content, tmp_path)

    @pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
    def test_a_header_of_gigabytes(self, kind: bytes, tmp_path: Path) -> None:
        info = tarfile.TarInfo("header")
        info.size, info.type = 7 << 30, kind
        with pytest.raises(BenchError, match=r"header .*7,516,192,768 bytes"):
            self.index(info.tobuf() + bytes(10240), tmp_path)

    @pytest.mark.parametrize("how", ["between two members", "a header"])
    def test_an_archive_that_lost_members(self, how: str, tmp_path: Path) -> None:
        content = bytearray(tar_of({"cat/a.png": b"x", "cat/b.png": b"y"}))
        assert list(self.index(bytes(content), tmp_path)["name"]) == ["cat/a.png", "cat/b.png"]
        if how == "a header":
            content[1024] ^= 1  # the second member's, after a header and a block of content
        message = "end mark" if how == "between two members" else "header .*: bad checksum"
        with pytest.raises(BenchError, match=f"damaged or truncated: .*{message}"):
            self.index(bytes(content[: 1024 if how == "between two members" else None]), tmp_path)


def test_a_prompt_is_filled_in_and_computes_nothing(tmp_path: Path) -> None:
    import torch

    from bench.backbones.backbone import zero_shot_head

    seen: list[str] = []

    class Text(torch.nn.Module):
        scale = 1.0

        def tokenize(self, prompts: list[str]) -> torch.Tensor:
            seen.extend(prompts)
            return torch.zeros(len(prompts), 1)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(tokens), 2)

    template = "a {} of {:>999999999} {0.__class__}"
    zero_shot_head(Text(), ["cat", "{0}"], [template])  # type: ignore[arg-type]
    assert seen == ["a cat of {:>999999999} {0.__class__}", "a {0} of {:>999999999} {0.__class__}"]
