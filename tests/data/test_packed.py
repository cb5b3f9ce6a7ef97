"""Images read out of tar archives and Parquet files are the images of the folder, with the same
labels and identity.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib
import io
import os
import pickle
import tarfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from bench.data.cards.suite_card import InDistribution
from bench.data.collection import divide, fingerprint
from bench.data.readers.archive import expanded
from bench.data.readers.index_cache import divided, fingerprint_of
from bench.data.readers.located import NotHere, Opened
from bench.errors import BenchError

from support.pets import IDS, opened, unpacked


def tar(file: Path | io.BytesIO, members: dict[str, bytes]) -> None:
    with tarfile.open(
        file if isinstance(file, Path) else None,
        "w",
        fileobj=None if isinstance(file, Path) else file,
    ) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def assert_same(found: Opened, folder: Opened) -> None:
    one, other = found.collection, folder.collection
    assert one.labels.tolist() == other.labels.tolist()
    assert one.content.tolist() == other.content.tolist()
    rows = np.arange(len(one))
    assert fingerprint(one, rows) == fingerprint(other, rows)
    for row in rows.tolist():
        assert np.array_equal(
            np.asarray(one.originals.open(row)), np.asarray(other.originals.open(row))
        )


@pytest.mark.parametrize("identity", ["content", "listing"])
class TestTars:
    def test_shards_with_class_folders(
        self, root: Path, photos: dict[str, bytes], identity: str
    ) -> None:
        unpacked(root, photos)
        names = sorted(photos)
        tar(
            root / "pets" / "shard-000.tar",
            {f"pets/{name}": photos[name] for name in names[:5]} | {"pets/README": b"x"},
        )
        tar(root / "pets" / "shard-001.tar", {f"pets/{name}": photos[name] for name in names[5:]})
        found = opened(root, '{ kind = "tar", path = "shard-{000..001}.tar" }', identity)
        assert_same(found, opened(root, '{ path = "test" }', identity))

    def test_webdataset_samples_with_a_cls_file(
        self, root: Path, photos: dict[str, bytes], identity: str
    ) -> None:
        unpacked(root, photos)
        members: dict[str, bytes] = {}
        for name, data in photos.items():
            stem = name.rpartition("/")[2].removesuffix(".png")
            members |= {
                f"{stem}.cls": str(IDS.index(name[:3])).encode(),
                f"{stem}.png": data,
                f"{stem}.json": b"{}",
            }
        tar(root / "pets" / "a.tar", members)
        found = opened(
            root,
            '{ kind = "tar", path = "*.tar", class_in = "cls", named_by = ["number"] }',
            identity,
        )
        assert_same(found, opened(root, '{ path = "test" }', identity))

    def test_the_archive_of_class_archives(
        self, root: Path, photos: dict[str, bytes], identity: str
    ) -> None:
        unpacked(root, photos)
        inner: dict[str, bytes] = {}
        for one in IDS:
            file = io.BytesIO()
            tar(
                file,
                {
                    name.partition("/")[2]: data
                    for name, data in photos.items()
                    if name.startswith(one)
                },
            )
            inner[f"{one}.tar"] = file.getvalue()
        tar(root / "pets" / "train.tar", inner)
        found = opened(root, '{ kind = "tar", path = "train.tar", class_in = "archive" }', identity)
        assert_same(found, opened(root, '{ path = "test" }', identity))

    @pytest.mark.parametrize("source", ["devkit", "devkit.tar.gz", "solution.csv", "labels.txt"])
    def test_a_flat_archive_with_a_list_of_classes(
        self, root: Path, photos: dict[str, bytes], identity: str, source: str
    ) -> None:
        unpacked(root, photos)
        flat = {name.partition("/")[2]: data for name, data in photos.items()}
        tar(root / "pets" / "val.tar", dict(reversed(flat.items())))
        truth = [name[:3] for name in sorted(flat)]
        place = root / "pets" / source
        if source.startswith("devkit"):
            # The development kit's numbers follow an order of their own: here the reverse.
            (root / "devkit" / "data").mkdir(parents=True)
            synsets = np.array(
                [(3 - k, one) for k, one in enumerate(IDS)],
                dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")],
            )
            savemat(root / "devkit" / "data" / "meta.mat", {"synsets": synsets})
            lines = "\n".join(str(3 - IDS.index(one)) for one in truth)
            (root / "devkit" / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
            if source == "devkit":
                (root / "devkit").rename(place)
            else:
                with tarfile.open(place, "w:gz") as archive:
                    archive.add(root / "devkit", "devkit")
        elif source == "solution.csv":
            rows = [f"{name.removesuffix('.png')},{name[:3]} 1 2 3 4" for name in flat]
            place.write_text("\n".join(["ImageId,PredictionString", *rows]))
        else:
            place.write_text("\n".join(truth))
        lists = f'lists = ["absent.txt", "{source}"]'
        folder = opened(root, '{ path = "test" }', identity)
        assert_same(
            opened(
                root, f'{{ kind = "tar", path = "val.tar", class_in = "list", {lists} }}', identity
            ),
            folder,
        )
        # The same archive unpacked, and nothing moved.
        (root / "pets" / "val").mkdir()
        for name, data in flat.items():
            (root / "pets" / "val" / name).write_bytes(data)
        assert_same(opened(root, f'{{ kind = "flat", path = "val", {lists} }}', identity), folder)


def test_an_index_is_remembered_until_the_archive_changes(
    root: Path, photos: dict[str, bytes], monkeypatch: Any
) -> None:
    from bench.data.readers import archive as archive_module

    place, layout = root / "pets" / "a.tar", '{ kind = "tar", path = "a.tar" }'
    tar(place, photos)
    reads: list[Path] = []
    rows = archive_module._rows
    monkeypatch.setattr(
        archive_module, "_rows", lambda path, *rest: (reads.append(path), rows(path, *rest))[1]
    )
    first, second = opened(root, layout), opened(root, layout)
    assert len(reads) == 1
    assert first.collection.content.tolist() == second.collection.content.tolist()
    del photos["n01/n01_0.png"]
    tar(place, photos)
    assert len(opened(root, layout).collection) == 11
    assert len(reads) == 2
    with pytest.raises(BenchError, match="changed while it was in use"):
        first.collection.originals.open(0)


def test_originals_can_be_sent_to_another_process(root: Path, photos: dict[str, bytes]) -> None:
    tar(root / "pets" / "a.tar", photos)
    originals = opened(root, '{ kind = "tar", path = "a.tar" }').collection.originals
    before = np.asarray(originals.open(3))
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(originals)).open(3)), before)
    assert originals.place(3).startswith(str(root / "pets" / "a.tar: "))


def test_shards_of_a_server_are_brought_once(
    root: Path, photos: dict[str, bytes], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served").mkdir()
    tar(tmp_path / "served" / "s-0.tar", photos)
    requested: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requested.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served"))
    )
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    try:
        layout = (
            '{ kind = "tar", path ='
            f' "http://127.0.0.1:{server.server_address[1]}/s-{{0..0}}.tar" }}'
        )
        assert len(opened(root, layout).collection) == 12
        assert len(opened(root, layout).collection) == 12
    finally:
        server.shutdown()
        server.server_close()
    assert requested == ["/s-0.tar"]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("spoil", "reason"), [(cut, "damaged or truncated"), (gzip.compress, "compressed with gzip")]
)
@pytest.mark.parametrize("identity", ["content", "listing"])
def test_an_archive_that_cannot_be_read_in_place_is_reported(
    root: Path, photos: dict[str, bytes], spoil: Any, reason: str, identity: str
) -> None:
    place = root / "pets" / "a.tar"
    tar(place, photos)
    place.write_bytes(spoil(place.read_bytes()))
    with pytest.raises(BenchError, match=reason):
        opened(root, '{ kind = "tar", path = "a.tar" }', identity)


def test_a_missing_shard_a_missing_list_and_a_short_list_are_reported(
    root: Path, photos: dict[str, bytes]
) -> None:
    tar(root / "pets" / "s-0.tar", photos)
    with pytest.raises(BenchError, match=r"1 of 2 shards are missing: s-1\.tar"):
        opened(root, '{ kind = "tar", path = "s-{0..1}.tar" }')
    listed = '{ kind = "tar", path = "s-0.tar", class_in = "list", lists = ["l.txt"] }'
    with pytest.raises(NotHere, match=r"no list of its classes: l\.txt"):
        opened(root, listed)
    (root / "pets" / "l.txt").write_text("n01\nn02\n")
    with pytest.raises(BenchError, match="2 lines for 12 images"):
        opened(root, listed)


def test_imagenets_names_say_which_line_of_a_list_is_theirs(
    root: Path, photos: dict[str, bytes]
) -> None:
    """Half a copy keeps its classes; read by rank it would get those of other images."""
    (root / "pets" / "val").mkdir()
    for number, name in enumerate(sorted(photos), start=1):
        if number % 2:
            (root / "pets" / "val" / f"ILSVRC2012_val_{number:08d}.png").write_bytes(photos[name])
    (root / "pets" / "l.txt").write_text("\n".join(name[:3] for name in sorted(photos)))
    found = opened(root, '{ kind = "flat", path = "val", lists = ["l.txt"] }').collection
    truth = {hash_of(data): IDS.index(name[:3]) for name, data in photos.items()}
    assert found.labels.tolist() == [truth[content] for content in found.content.tolist()]
    assert len(found) == 6


def test_images_that_no_class_is_given_for_are_reported(
    root: Path, photos: dict[str, bytes]
) -> None:
    tar(root / "pets" / "a.tar", {name.partition("/")[2]: data for name, data in photos.items()})
    rows = [f"{Path(name).stem},{name[:3]} 1 2 3 4" for name in sorted(photos)[:-1]]
    (root / "pets" / "l.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    found = opened(root, '{ kind = "tar", path = "a.tar", class_in = "list", lists = ["l.csv"] }')
    assert len(found.collection) == 11
    assert any("1 images" in remark and "a/n03_3.png" in remark for remark in found.remarks)


def test_places_on_a_card_may_be_absolute(
    root: Path, photos: dict[str, bytes], tmp_path: Path
) -> None:
    unpacked(root, photos)
    (root / "pets" / "test").rename(tmp_path / "far")
    tar(tmp_path / "far.tar", photos)
    assert_same(
        opened(root, f'{{ path = "{tmp_path}/far" }}'),
        opened(root, f'{{ kind = "tar", path = "{tmp_path}/f*.tar" }}'),
    )


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_labels_that_are_no_class_and_classes_without_images_are_remarked(
    root: Path, photos: dict[str, bytes]
) -> None:
    tar(
        root / "pets" / "a.tar",
        {
            ("n99" + name[3:] if name.startswith("n03") else name): data
            for name, data in photos.items()
        },
    )
    found = opened(root, '{ kind = "tar", path = "a.tar" }')
    assert len(found.collection) == 8
    assert any("1 of 3 classes have no image: n03" in remark for remark in found.remarks)
    assert any("n99" in remark for remark in found.remarks)


@pytest.fixture
def parquet(root: Path, photos: dict[str, bytes]) -> Path:
    """Two files as the Hugging Face hub has them."""
    names = sorted(photos)
    info = (
        b'{"info": {"features": {"label": {"names": ["n01", "n02", "n03"], "_type":'
        b' "ClassLabel"}}}}'
    )
    for number, part in enumerate((names[:7], names[7:])):
        table = pa.table(
            {
                "image": [
                    {"bytes": photos[name], "path": name.rpartition("/")[2]} for name in part
                ],
                "label": [IDS.index(name[:3]) for name in part],
            }
        ).replace_schema_metadata({b"huggingface": info})
        pq.write_table(table, root / "pets" / f"test-{number}.parquet")
    return root


@pytest.mark.parametrize("identity", ["content", "listing"])
@pytest.mark.parametrize("named_by", ["number", "id"])
def test_parquet_files_hold_the_same_images(
    parquet: Path, photos: dict[str, bytes], identity: str, named_by: str
) -> None:
    unpacked(parquet, photos)
    layout = f'{{ kind = "parquet", path = "test-*.parquet", named_by = ["{named_by}"] }}'
    assert_same(opened(parquet, layout, identity), opened(parquet, '{ path = "test" }', identity))


@pytest.mark.parametrize("kind", ["folders", "tar", "parquet"])
def test_a_large_listed_part_is_made_once_and_mapped_from_then_on(
    parquet: Path, photos: dict[str, bytes], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = {
        "folders": '{ path = "test" }',
        "tar": '{ kind = "tar", path = "a.tar" }',
        "parquet": '{ kind = "parquet", path = "*.parquet" }',
    }[kind]
    unpacked(parquet, photos | {"n01/broken.png": b"", "n99/odd.png": b"odd"})
    tar(parquet / "pets" / "a.tar", photos | {"n01/broken.png": b"", "n99/odd.png": b"odd"})
    fresh = opened(parquet, layout, "listing")
    monkeypatch.setattr("bench.data.readers.listing.TRUSTED_FROM", 10)
    monkeypatch.setattr("bench.data.readers.listing.UNSETTLED_NS", -(10**30))
    made = []
    for module, name in (("class_folders", "_read"), ("packed", "_opened")):
        original = getattr(importlib.import_module(f"bench.data.readers.{module}"), name)
        monkeypatch.setattr(
            f"bench.data.readers.{module}.{name}",
            lambda *a, make=original, **k: (made.append(1), make(*a, **k))[1],
        )
    division = InDistribution(path="all", val_fraction=0.3, test_fraction=0.3)
    for _ in range(2):
        found = opened(parquet, layout, "listing")
        one, other = found.collection, fresh.collection
        for field in ("keys", "labels", "content", "problems", "stamps"):
            values = getattr(one, field)
            assert isinstance(values, np.memmap)
            assert values.tolist() == getattr(other, field).tolist()
        assert found.remarks == fresh.remarks
        assert found.problems.values.tolist() == fresh.problems.values.tolist()
        for row in np.flatnonzero(one.problems == "").tolist():
            assert np.array_equal(
                np.asarray(one.originals.open(row)), np.asarray(other.originals.open(row))
            )
            assert one.originals.place(row) == other.originals.place(row)
        for _ in range(2):
            rows = divided(one, division)
            for name, expected in divide(other, division).items():
                assert rows[name].tolist() == expected.tolist()
                assert fingerprint_of(one, rows[name]) == fingerprint(other, expected)
    assert len(made) == 1
    if kind == "folders":
        (parquet / "pets/test/n02/more.png").write_bytes(photos["n02/n02_0.png"])
    else:
        os.utime(parquet / "pets" / ("a.tar" if kind == "tar" else "test-1.parquet"), ns=(0, 0))
    changed = opened(parquet, layout, "listing").collection
    assert len(changed) == len(fresh.collection) + (kind == "folders")
    assert len(made) == 2
    # What the older one still adds to the cache is its own: it is of other images.
    rows = np.arange(len(one) - 1)
    assert fingerprint_of(one, rows) == fingerprint(one, rows)
    assert fingerprint_of(changed, rows) == fingerprint(changed, rows)
    monkeypatch.setattr("bench.data.pixels.image_bytes.VERSION", 99)
    opened(parquet, layout, "listing")
    assert len(made) == 3


def test_a_parquet_file_without_the_columns_or_damaged_is_reported(parquet: Path) -> None:
    with pytest.raises(BenchError, match="no column jpg"):
        opened(parquet, '{ kind = "parquet", path = "*.parquet", image = "jpg" }')
    (parquet / "pets" / "test-0.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(BenchError, match="cannot be read"):
        opened(parquet, '{ kind = "parquet", path = "*.parquet" }')


def test_a_range_stands_for_every_number_of_its_width() -> None:
    assert expanded("s-{008..010}.tar") == ["s-008.tar", "s-009.tar", "s-010.tar"]
    assert expanded("{0..1}/{0..1}") == ["0/0", "0/1", "1/0", "1/1"]


@pytest.mark.parametrize("kind", ["struct", "text"])
def test_paths_instead_of_images_are_reported(kind: str, root: Path) -> None:
    values = [
        {"bytes": None, "path": f"/home/a/{n}.png"} if kind == "struct" else f"/home/a/{n}.png"
        for n in range(3)
    ]
    (root / "pets").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": values, "label": [0, 1, 2]}), root / "pets" / "a.parquet")
    with pytest.raises(BenchError, match="column image has paths of images"):
        opened(root, '{ kind = "parquet", path = "*.parquet" }')
