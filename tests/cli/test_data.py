"""`bench data`: list, link, verify, fetch and prepare as a user meets them."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from bench.cli import build_app, main
from bench.data.cards.locations import DataRoot
from bench.data.readers.located import open_dataset
from bench.data.readers.parts import open_part
from bench.errors import BenchError, MissingPrerequisite, UsageError

CARD = """
name = "pets"
title = "Pets"
licence = "CC0"
folders = ["pets"]
classes = ["cat", "dog"]
[parts.train]
images = 8
per_class = 4
layouts = [{ path = "train" }]
[parts.test]
images = 4
layouts = [{ path = "test" }]
[fetch]
steps = "Sign the form."
"""


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BENCH_CACHE", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """The card of a small dataset whose images lie outside of the data root."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            place = tmp_path / "elsewhere" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (60 + number, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    card = tmp_path / "pets.toml"
    card.write_text(CARD, encoding="utf-8")
    return card


@pytest.fixture
def here(pets: Path, tmp_path: Path) -> Path:
    assert bench("link", pets, tmp_path / "elsewhere").exit_code == 0
    return pets


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["data", *map(str, arguments)])


def table(result: Result, number: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(result.stdout)["tables"][number]["rows"]
    return found


def test_the_list_tells_what_there_is_which_suites_need_it_and_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "data" / "imagenet-r").mkdir(parents=True)
    found = {row["name"]: row for row in table(bench("list", "--format", "json"))}
    assert found["imagenet-r"]["data"] == str(tmp_path / "data" / "imagenet-r")
    assert found["imagenet-r"]["images"] == 30000
    assert "imagenet-shifts" in found["imagenet-r"]["suites"]
    assert found["imagenet"]["data"] == "missing"
    assert found["imagenet-c-generated"]["data"] == "generated"


def test_one_dataset_is_shown_whole() -> None:
    about = {
        row["field"]: row["value"] for row in table(bench("show", "imagenet-a", "--format", "json"))
    }
    assert about["licence"] == "MIT for the collection; the photographs are their authors'"
    assert "imagenet-shifts-full1000" in about["suites"]
    assert table(bench("show", "imagenet-a", "--format", "json"), 1) == [
        {"part": "test", "images": 7500, "layouts": "., imagenet-a"}
    ]
    (download,) = table(bench("show", "imagenet-a", "--format", "json"), 2)
    assert (download["size"], download["checked by"]) == (687552512, "SHA-256")


def test_a_link_makes_a_folder_usable_where_it_is(pets: Path, tmp_path: Path) -> None:
    result = bench("link", pets, tmp_path / "elsewhere")
    assert result.exit_code == 0
    assert "found: train, test" in result.stderr
    assert (tmp_path / "data" / "pets").resolve() == (tmp_path / "elsewhere").resolve()
    assert bench("verify", pets).exit_code == 0
    assert bench("link", pets, tmp_path / "elsewhere").exit_code == 0


def test_a_link_to_something_else_is_refused_unless_forced(here: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "cats").mkdir(parents=True)
    assert isinstance(bench("link", here, tmp_path / "nowhere").exception, UsageError)
    wrong = bench("link", here, tmp_path / "other").exception
    assert isinstance(wrong, BenchError)
    assert "test, train" in wrong.where
    (tmp_path / "other" / "train" / "cat").mkdir(parents=True)
    assert isinstance(bench("link", here, tmp_path / "other").exception, BenchError)
    assert bench("link", "--force", here, tmp_path / "other").exit_code == 0
    assert (tmp_path / "data" / "pets").resolve() == (tmp_path / "other").resolve()


def test_without_any_data_root_a_link_goes_to_the_users_own_folder(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENCH_DATA")
    assert bench("link", pets, tmp_path / "elsewhere").exit_code == 0
    assert bench("verify", pets).exit_code == 0


def test_a_right_copy_is_as_stated_and_a_full_check_gives_the_same_sum_everywhere(
    here: Path, tmp_path: Path
) -> None:
    result = bench("verify", "--full", here, "--format", "json")
    assert result.exit_code == 0
    sums = {row["part"]: row["checksum"] for row in table(result)}
    assert [row["verdict"] for row in table(result)] == ["as stated"] * 2
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    assert bench("link", "--force", here, tmp_path / "moved").exit_code == 0
    assert {
        row["part"]: row["checksum"]
        for row in table(bench("verify", "--full", here, "--format", "json"))
    } == sums


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        ("remove", "difference", "7 images, the card says 8 (-1)"),
        ("remove", "difference", "dog has 3"),
        ("empty", "difference", "empty"),
        ("class", "difference", "1 of 2 classes have no folder with images: dog"),
        ("extra", "remark", "1 folders"),
        ("cut", "difference", "1 images cannot be read"),
        (
            "dangling",
            "difference",
            "2 link to nothing: cannot be read: train/dog/0.png, train/dog/1.png",
        ),
        ("flat", "remark", "1 images outside every class folder (ignored): train/0.png"),
        ("part", "missing", "nothing of `train`"),
    ],
)
def test_what_differs_is_named(
    here: Path, tmp_path: Path, spoil: str, kind: str, text: str
) -> None:
    train = tmp_path / "elsewhere" / "train"
    if spoil == "remove":
        (train / "dog" / "0.png").unlink()
    elif spoil == "empty":
        (train / "dog" / "0.png").write_bytes(b"")
    elif spoil == "class":
        (train / "dog").rename(tmp_path / "dog")
    elif spoil == "extra":
        (train / "cat" / "0.png").rename(train / "cat" / "0.png")
        (train / "newt").mkdir()
        Image.new("RGB", (8, 8)).save(train / "newt" / "0.png")
    elif spoil == "dangling":
        # The second leads to itself.
        for name, target in (
            ("0.png", "nowhere"),
            ("1.png", "1.png"),
        ):
            (train / "dog" / name).unlink()
            (train / "dog" / name).symlink_to(target)
    elif spoil == "flat":
        (train / "cat" / "0.png").rename(train / "0.png")
    elif spoil == "cut":
        file = train / "dog" / "0.png"
        file.write_bytes(file.read_bytes()[:-2000])
    else:
        train.rename(tmp_path / "train")
    result = bench("verify", "--full", here, "--format", "json")
    found = [row for row in table(result, 1) if row["part"] == "train" and row["kind"] == kind]
    assert any(text in row["what"] for row in found), result.stdout
    assert result.exit_code == (1 if kind == "difference" or spoil == "flat" else 0)


def test_what_is_not_here_names_the_commands_that_bring_it(pets: Path) -> None:
    error = bench("verify", pets).exception
    assert isinstance(error, MissingPrerequisite)
    assert "bench data fetch" in error.fix
    assert "bench data link" in error.fix


def test_data_behind_a_licence_show_their_steps(pets: Path) -> None:
    error = bench("fetch", pets).exception
    assert isinstance(error, MissingPrerequisite)
    assert error.fix.startswith("Sign the form.")
    assert error.fix.endswith(f"bench data link {pets} /folder/of/it"), (
        "a card of one's own has no installed name"
    )


def read(card: Path, root: Path, part: str, cache: Path) -> Any:
    dataset = open_dataset(str(card), [DataRoot(root, "test")])
    return open_part(dataset, part, [0, 1], cache=cache).collection


def test_a_prepared_copy_has_the_same_labels_in_smaller_images(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert bench("prepare", here, "--size", "32", "--out", out).exit_code == 0
    card = out / "pets-short32-jpeg95.toml"
    small, whole = (
        read(one, tmp_path / "data", "train", tmp_path / "index") for one in (card, here)
    )
    assert sorted(small.labels) == sorted(whole.labels)
    assert {small.originals.open(row).size for row in range(8)} == {
        (48, 32),
        (47, 32),
        (46, 32),
        (45, 32),
    }
    assert set(small.content).isdisjoint(whole.content)
    assert bench("verify", card).exit_code == 0
    assert open_dataset(str(card), []).card.made_of == "pets"
    # Parts that were not prepared are the originals.
    rest, originals = (
        read(card, tmp_path, "test", tmp_path / "index"),
        read(here, tmp_path / "data", "test", tmp_path / "index"),
    )
    assert rest.content.tolist() == originals.content.tolist()
    assert [rest.originals.open(row).size for row in range(4)] == [
        originals.originals.open(row).size for row in range(4)
    ]


def test_a_prepared_copy_reads_the_other_parts_in_whichever_layout_they_are(
    here: Path, tmp_path: Path
) -> None:
    """ImageNet's validation archive beside the training folders, and a list of classes beside the
    card.
    """
    originals = read(here, tmp_path / "data", "test", tmp_path / "index")
    first = originals.originals.open(0).size
    test, top = tmp_path / "elsewhere" / "test", tmp_path / "elsewhere"
    with tarfile.open(top / "test.tar", "w") as tar:
        for file in sorted(test.rglob("*.png")):
            tar.add(file, f"{file.parent.name}-{file.name}")
    (top / "truth.csv").write_text(
        "ImageId,PredictionString\n"
        + "".join(f"{f.parent.name}-{f.stem},{f.parent.name} 1\n" for f in test.rglob("*.png"))
    )
    shutil.rmtree(test)
    archive = '{ kind = "tar", path = "test.tar", class_in = "list", lists = ["truth.csv"] }'
    here.write_text(
        CARD.replace('{ path = "test" }', archive).replace('["cat", "dog"]', '"./pets.tsv"')
    )
    (tmp_path / "pets.tsv").write_text("cat\ndog\n")
    assert bench("prepare", here, "--size", "32", "--out", tmp_path / "small").exit_code == 0
    rest = read(
        tmp_path / "small" / "pets-short32-jpeg95.toml", tmp_path, "test", tmp_path / "index"
    )
    assert rest.content.tolist() == originals.content.tolist()
    assert rest.labels.tolist() == originals.labels.tolist()
    assert rest.originals.open(0).size == first


def test_a_full_disk_stops_preparing_and_the_same_command_continues(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "small"
    with monkeypatch.context() as patched:
        patched.setattr("bench.data.prepare.tarfile.TarFile.addfile", full)
        error = bench("prepare", here, "--size", "32", "--out", out).exception
    assert isinstance(error, BenchError)
    assert error.what == "train-00000.tar cannot be written: No space left on device"
    assert not list(out.glob("*.part"))
    assert bench("prepare", here, "--size", "32", "--out", out).exit_code == 0


def test_what_the_system_refuses_is_reported_in_three_lines(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(link: Path, target: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(target), None, str(link))

    monkeypatch.setattr(Path, "symlink_to", refused)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "link", str(pets), str(tmp_path / "elsewhere")])
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert "Permission denied" in lines[0]
    assert lines[1].strip() == f"where: {tmp_path / 'data' / 'pets'}"


def test_a_link_says_what_of_the_class_folders_it_sees(pets: Path, tmp_path: Path) -> None:
    train = tmp_path / "elsewhere" / "train"
    assert "classes" not in bench("link", pets, tmp_path / "elsewhere").stderr
    (train / "dog").rename(train / "newt")
    found = bench("link", pets, tmp_path / "elsewhere").stderr
    assert "train: found folders for 1 of 2 classes, and 1 other" in found


def test_a_lossless_copy_has_the_pixels_of_the_resize(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert (
        bench(
            "prepare", here, "--size", "32", "--part", "test", "--lossless", "--out", out
        ).exit_code
        == 0
    )
    small = read(out / "pets-short32-png.toml", tmp_path, "test", tmp_path / "index")
    whole = read(here, tmp_path / "data", "test", tmp_path / "index")
    expected = {
        np.asarray(
            image.resize((int(32 * image.width / image.height), 32), Image.Resampling.BICUBIC)
        ).tobytes()
        for image in (whole.originals.open(row) for row in range(4))
    }
    assert {np.asarray(small.originals.open(row)).tobytes() for row in range(4)} == expected


def test_preparing_continues_with_the_shards_that_are_missing(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.data.prepare.SHARD", 3)
    out = tmp_path / "small"
    assert bench("prepare", here, "--size", "32", "--out", out).exit_code == 0
    shards = sorted(out.glob("*.tar"))
    before = {shard.name: shard.read_bytes() for shard in shards}
    assert len(shards) == 3
    saved = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    assert bench("prepare", here, "--size", "32", "--out", out).exit_code == 0
    assert {shard.name: shard.read_bytes() for shard in sorted(out.glob("*.tar"))} == before
    assert shards[0].stat().st_mtime_ns == saved
    other = bench("prepare", here, "--size", "24", "--out", out).exception
    assert isinstance(other, BenchError)
    assert "another preparation" in other.what


def test_wrong_parts_and_broken_images_stop_preparing(here: Path, tmp_path: Path) -> None:
    assert isinstance(bench("prepare", here, "--part", "val").exception, UsageError)
    file = tmp_path / "elsewhere" / "train" / "dog" / "0.png"
    file.write_bytes(file.read_bytes()[:-2000])
    error = bench("prepare", here, "--out", tmp_path / "small").exception
    assert isinstance(error, BenchError)
    assert "dog/0.png" in error.where
