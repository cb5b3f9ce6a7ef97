"""Downloads and archives as the world serves them: each ends in the right state with the right
message.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.data.cards.dataset import DatasetCard
from bench.data.fetching import download as download_module
from bench.data.fetching.download import Wanted, download, fetch_dataset
from bench.errors import BenchError, MissingPrerequisite


@dataclass
class Answer:
    """What is at a path.

    Attributes:
        body: the file.
        tag: its ETag, "" for none.
        kind: Content-Type.
        breaks: after how many bytes of the body of each successive answer the connection is cut;
            whole answers afterwards.
        status: instead of 200.
        ranges: whether it heeds Range.
    """

    body: bytes
    tag: str = '"1"'
    kind: str = "application/octet-stream"
    breaks: list[int] = field(default_factory=list)
    status: int = 200
    ranges: bool = True
    modified: str = ""
    requested: list[str] = field(default_factory=list)


@contextmanager
def serving(answers: dict[str, Answer]) -> Iterator[str]:
    """Serve and give the address, without a slash at its end. Each answer's `requested` lists the
    Range headers that came.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = answers.get(self.path)
            if answer is None or answer.status != 200:
                self.send_response(404 if answer is None else answer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            wanted = self.headers.get("Range", "")
            answer.requested.append(wanted)
            start = 0
            same = self.headers.get("If-Range", "") in (answer.tag, answer.modified)
            if wanted and answer.ranges and same:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            body = answer.body[start:]
            if start and not body:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(answer.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(answer.body) - 1}/{len(answer.body)}"
                )
            for name, value in (
                ("ETag", answer.tag),
                ("Last-Modified", answer.modified),
                ("Content-Type", answer.kind),
            ):
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if answer.breaks:
                self.wfile.write(body[: answer.breaks.pop(0)])
                self.close_connection = True
                return
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


BODY = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    monkeypatch.setattr(download_module, "_BLOCK", 1 << 16)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar_of(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zip_of(members: dict[str, bytes], link: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name == link:
                info.external_attr = 0o120777 << 16
            archive.writestr(info, content)
    return file.getvalue()


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


IMAGES: dict[str, Any] = {
    "pets/cat/1.png": b"one",
    "pets/cat/2.png": b"two",
    "pets/dog/1.png": b"three",
}


def card(*archives: dict[str, Any], **fetch: Any) -> DatasetCard:
    return DatasetCard.model_validate(
        {
            "name": "pets",
            "title": "Pets",
            "licence": "CC0",
            "folders": ["pets", "Pets"],
            "classes": ["cat", "dog"],
            "parts": {"test": {"layouts": [{"path": "."}]}},
            "fetch": {"archives": list(archives), **fetch},
        }
    )


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestDownload:
    def test_a_dropped_connection_is_continued_and_the_file_is_the_same(
        self, tmp_path: Path
    ) -> None:
        answer = Answer(BODY, breaks=[700_000, 500_000, 900_000])
        with serving({"/f.tar": answer}) as at:
            download(Wanted([f"{at}/f.tar"], len(BODY), sha256(BODY)), tmp_path / "f.tar")
        assert (tmp_path / "f.tar").read_bytes() == BODY
        starts = [
            int(requested.removeprefix("bytes=").removesuffix("-") or 0)
            for requested in answer.requested
            if requested
        ]
        assert len(starts) == 3
        assert starts == sorted(starts)
        assert starts[0] > 0
        assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == [
            "f.tar"
        ]

    def test_a_stopped_download_is_continued_by_the_next_call(self, tmp_path: Path) -> None:
        class Stop(BaseException):
            pass

        def stop(what: str, done: int, of: int) -> None:
            if done > 1_000_000:
                raise Stop

        answer = Answer(BODY)
        with serving({"/f.tar": answer}) as at:
            wanted = Wanted([f"{at}/f.tar"], len(BODY), sha256(BODY))
            with pytest.raises(Stop):
                download(wanted, tmp_path / "f.tar", progress=stop)
            assert not (tmp_path / "f.tar").exists()
            assert (tmp_path / "f.tar.part").stat().st_size >= 1_000_000
            download(wanted, tmp_path / "f.tar")
        assert (tmp_path / "f.tar").read_bytes() == BODY
        assert answer.requested[-1].startswith("bytes=1")

    @pytest.mark.parametrize("fields", [{"tag": '"2"'}, {"ranges": False}, {"tag": ""}])
    def test_what_cannot_be_continued_is_downloaded_anew(
        self, tmp_path: Path, fields: dict[str, Any]
    ) -> None:
        other = np.random.default_rng(1).bytes(2_500_000)
        answers = {"/f": Answer(other, breaks=[100_000, 0, 0, 0, 0])}
        with serving(answers) as at:
            with pytest.raises(BenchError, match="failed 4 times"):
                download(Wanted([f"{at}/f"], len(other)), tmp_path / "f")
            assert (tmp_path / "f.part").exists()
            answers["/f"] = Answer(BODY, **fields)
            download(Wanted([f"{at}/f"], len(BODY), sha256(BODY)), tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == BODY

    def test_a_wrong_checksum_leaves_nothing_and_a_mirror_repairs_it(self, tmp_path: Path) -> None:
        wrong = bytes(len(BODY))
        with serving({"/bad": Answer(wrong), "/good": Answer(BODY)}) as at:
            with pytest.raises(
                BenchError, match=f"SHA-256 is {sha256(wrong)}, the published one is {sha256(BODY)}"
            ):
                download(Wanted([f"{at}/bad"], len(BODY), sha256(BODY)), tmp_path / "f")
            assert not (tmp_path / "f").exists()
            assert not (tmp_path / "f.part").exists()
            download(
                Wanted([f"{at}/bad", f"{at}/gone", f"{at}/good"], len(BODY), sha256(BODY)),
                tmp_path / "f",
            )
        assert (tmp_path / "f").read_bytes() == BODY

    def test_an_md5_is_compared_where_nothing_better_is_published(self, tmp_path: Path) -> None:
        with serving({"/f": Answer(BODY)}) as at, pytest.raises(BenchError, match="MD5"):
            download(Wanted([f"{at}/f"], md5="0" * 32), tmp_path / "f")

    @pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
    def test_a_web_page_in_place_of_the_archive_is_recognised(
        self, tmp_path: Path, kind: str
    ) -> None:
        page = b"<!DOCTYPE html><html><head><title>Quota\nexceeded</title></head></html>"
        with (
            serving({"/f.tar": Answer(page, kind=kind)}) as at,
            pytest.raises(BenchError, match=r"web page.*Quota exceeded"),
        ):
            download(Wanted([f"{at}/f.tar"]), tmp_path / "f.tar")
        assert not (tmp_path / "f.tar").exists()

    def test_a_file_of_another_size_is_refused_before_it_is_downloaded(
        self, tmp_path: Path
    ) -> None:
        with (
            serving({"/f": Answer(BODY)}) as at,
            pytest.raises(BenchError, match=r"3,000,000 bytes, the card says 12"),
        ):
            download(Wanted([f"{at}/f"], 12), tmp_path / "f")

    @pytest.mark.parametrize(
        ("status", "reason"), [(403, "refuses access"), (404, "404"), (500, "failed 4 times.*500")]
    )
    def test_what_the_server_answers_is_reported(
        self, tmp_path: Path, status: int, reason: str
    ) -> None:
        with (
            serving({"/f": Answer(b"", status=status)}) as at,
            pytest.raises(BenchError, match=reason),
        ):
            download(Wanted([f"{at}/f"]), tmp_path / "f")

    def test_a_full_disk_is_noticed_before(self, tmp_path: Path) -> None:
        with serving({"/f": Answer(BODY)}) as at, pytest.raises(BenchError, match=r"are free"):
            download(Wanted([f"{at}/f"]), tmp_path / "f", reserve=1 << 60)
        assert not (tmp_path / "f").exists()


class TestFetch:
    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("tar", tar_of(IMAGES)),
            ("tar", tar_of(IMAGES, "w:gz")),
            ("tar", tar_of(IMAGES, "w:xz")),
            ("zip", zip_of(IMAGES)),
        ],
    )
    def test_a_dataset_is_there_whole(self, tmp_path: Path, kind: str, body: bytes) -> None:
        with serving({"/pets": Answer(body)}) as at:
            made = fetch_dataset(
                card({"urls": [f"{at}/pets"], "kind": kind, "strip": 1, "sha256": sha256(body)}),
                tmp_path,
            )
        assert made == tmp_path / "pets"
        assert files_below(made) == {
            "cat/1.png": b"one",
            "cat/2.png": b"two",
            "dog/1.png": b"three",
        }
        assert [path.name for path in tmp_path.iterdir()] == ["pets"]

    def test_several_archives_and_files_make_one_dataset(self, tmp_path: Path) -> None:
        second = zip_of({"cat/3.png": b"four"})
        with serving(
            {
                "/a.tar": Answer(tar_of(IMAGES)),
                "/b.zip": Answer(second),
                "/labels.txt": Answer(b"cat\n"),
            }
        ) as at:
            made = fetch_dataset(
                card(
                    {"urls": [f"{at}/a.tar"], "kind": "tar"},
                    {"urls": [f"{at}/b.zip"], "kind": "zip", "into": "pets"},
                    {"urls": [f"{at}/labels.txt"], "kind": "file"},
                ),
                tmp_path,
                keep_archives=True,
            )
        assert set(files_below(made)) == {*IMAGES, "pets/cat/3.png", "labels.txt"}
        assert {path.name for path in (tmp_path / "archives").iterdir()} >= {"a.tar", "b.zip"}

    def test_archives_that_are_done_are_not_downloaded_again(self, tmp_path: Path) -> None:
        first = Answer(tar_of(IMAGES))
        answers = {"/a.tar": first}
        with serving(answers) as at:
            both = card(
                {"urls": [f"{at}/a.tar"], "kind": "tar"}, {"urls": [f"{at}/b.zip"], "kind": "zip"}
            )
            with pytest.raises(BenchError, match="404"):
                fetch_dataset(both, tmp_path)
            assert not (tmp_path / "pets").exists()
            answers["/b.zip"] = Answer(zip_of({"more/3.png": b"four"}))
            fetch_dataset(both, tmp_path)
        assert len(first.requested) == 1

    @pytest.mark.parametrize(
        ("kind", "body", "reason"),
        [
            ("tar", tar_of(IMAGES | {"pets/../../evil": b"x"}), "leads out of the folder"),
            ("tar", tar_of(IMAGES | {"/etc/evil": b"x"}), "absolute path"),
            ("tar", tar_of(IMAGES | {"C:\\evil": b"x"}), "absolute path"),
            (
                "tar",
                tar_of(
                    IMAGES | {"pets/link": link(tarfile.SYMTYPE, "/etc"), "pets/link/evil": b"x"}
                ),
                "is a link to '/etc'",
            ),
            (
                "tar",
                tar_of(IMAGES | {"pets/hard": link(tarfile.LNKTYPE, "../../../evil")}),
                "is a link",
            ),
            (
                "tar",
                tar_of(IMAGES | {"pets/pipe": link(tarfile.FIFOTYPE, "")}),
                "neither a file nor a folder",
            ),
            ("zip", zip_of(IMAGES | {"pets/../../evil": b"x"}), "leads out of the folder"),
            ("zip", zip_of(IMAGES | {"..\\evil": b"x"}), "leads out of the folder"),
            ("zip", zip_of(IMAGES | {"/etc/evil": b"x"}), "absolute path"),
            ("zip", zip_of(IMAGES | {"pets/link": b"/etc"}, link="pets/link"), "is a link"),
        ],
    )
    def test_an_unsafe_archive_writes_nothing_outside_and_leaves_nothing(
        self, tmp_path: Path, kind: str, body: bytes, reason: str
    ) -> None:
        root = tmp_path / "a" / "b" / "root"
        with (
            serving({"/pets": Answer(body)}) as at,
            pytest.raises(BenchError, match=f"not safe.*{reason}"),
        ):
            fetch_dataset(card({"urls": [f"{at}/pets"], "kind": kind}), root)
        assert not (root / "pets").exists()
        assert not [
            path
            for path in tmp_path.rglob("*")
            if path.is_file() and not path.name.endswith(".lock")
        ]

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("tar", tar_of({"a.bin": BODY})[:1_000_000]),
            ("tar", tar_of({"a.bin": BODY}, "w:gz")[:1_000_000]),
            ("tar", tar_of({"a.bin": BODY}, "w:xz")[:1_000_000]),
            ("tar", gzip.compress(b"this is no tar")),
            ("zip", zip_of({"a.bin": BODY})[:1_000_000]),
            ("zip", zip_of({"a.bin": BODY}).replace(BODY[1_000:1_100], bytes(100))),
            ("tar", b"nonsense" * 1000),
        ],
    )
    def test_a_truncated_or_damaged_archive_is_reported_and_downloaded_again_next_time(
        self, tmp_path: Path, kind: str, body: bytes
    ) -> None:
        answers = {"/pets": Answer(body)}
        with serving(answers) as at:
            mine = card({"urls": [f"{at}/pets"], "kind": kind})
            with pytest.raises(BenchError, match="damaged or truncated"):
                fetch_dataset(mine, tmp_path)
            assert not (tmp_path / "pets").exists()
            answers["/pets"] = Answer(tar_of(IMAGES) if kind == "tar" else zip_of(IMAGES))
            fetch_dataset(mine, tmp_path)
        assert set(files_below(tmp_path / "pets")) == set(IMAGES)

    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_a_bomb_is_stopped_at_its_limit(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "bench.data.fetching.unpack.most_unpacked",
            lambda archive: max(20 * archive.stat().st_size, 1 << 20),
        )
        zeros = {"a.bin": bytes(30_000_000)}
        body = tar_of(zeros, "w:gz") if kind == "tar" else zip_of(zeros)
        assert len(body) < 100_000
        with serving({"/pets": Answer(body)}) as at, pytest.raises(BenchError, match="far beyond"):
            fetch_dataset(card({"urls": [f"{at}/pets"], "kind": kind}), tmp_path)
        assert not (tmp_path / "pets").exists()
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 1000

    def test_data_behind_a_login_print_the_steps_and_exit_with_3(self, tmp_path: Path) -> None:
        with pytest.raises(
            MissingPrerequisite, match=r"(?s)Sign the form.*bench data link pets"
        ) as caught:
            fetch_dataset(card(steps="Sign the form."), tmp_path)
        assert caught.value.exit_code == 3

    def test_what_is_here_is_not_fetched_over(self, tmp_path: Path) -> None:
        (tmp_path / "pets").mkdir()
        with pytest.raises(BenchError, match="already exists"):
            fetch_dataset(card({"urls": ["http://127.0.0.1:9/x"], "kind": "tar"}), tmp_path)
