"""Where Ray writes on this machine: in a folder that no other user can enter."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.sweeps.ray import session as ray_session


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a path that Ray's sockets stand."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.gettempdir", lambda: folder)
        monkeypatch.setattr("os.getuid", lambda: Path(folder).stat().st_uid)
        yield Path(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_session_is_below_a_private_folder_whatever_ray_opens_in_it(
    short: Path, tmp_path: Path
) -> None:
    with ray_session._folder(tmp_path / "ray.log") as folder:
        folder.chmod(0o777)  # as Ray does
        assert folder.parent.parent == short
        assert mode(folder.parent) == 0o700
        assert (
            len(str(folder))
            + len("/session_2026-11-26_14-04-06_123456_1234567/sockets/plasma_store")
            <= 107
        )
    assert list(folder.parent.iterdir()) == []


def _open(place: Path) -> None:
    place.mkdir()
    place.chmod(0o755)


def _link(place: Path) -> None:
    (place.parent / "mine").mkdir(mode=0o700)
    place.symlink_to(place.parent / "mine")


@pytest.mark.parametrize("made", [_open, _link, Path.touch])
def test_a_folder_that_others_prepared_is_not_used(
    made: object, short: Path, tmp_path: Path
) -> None:
    place = ray_session._place()
    place.rmdir()
    assert callable(made)
    made(place)
    with (
        pytest.raises(BenchError, match="not a folder of this user alone"),
        ray_session._folder(tmp_path / "ray.log"),
    ):
        pass


def test_a_folder_of_another_user_is_not_used(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, other = ray_session._place(), short.stat().st_uid + 1
    monkeypatch.setattr("os.getuid", lambda: other)
    place.rename(place.with_name(f"bench-ray-{other}"))
    with pytest.raises(BenchError, match="not a folder of this user alone"):
        ray_session._place()


def test_a_link_among_ray_s_logs_is_not_followed(short: Path, tmp_path: Path) -> None:
    secret, log = tmp_path / "secret", tmp_path / "ray.log"
    secret.write_text("private")
    with ray_session._folder(log) as folder:
        logs = folder / "session_2026" / "logs"
        logs.mkdir(parents=True)
        (logs / "worker-1.out").symlink_to(secret)
        (logs / "worker-2.out").write_text("told")
    assert "told" in log.read_text()
    assert "private" not in log.read_text()


@pytest.mark.parametrize("content", ["", "garbage", "0" * 63, "\u00e9"])
def test_a_token_that_is_none_is_made_anew(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    first = ray_session._token().read_text()
    assert ray_session._token().read_text() == first
    ray_session._token().write_text(content, encoding="latin-1")
    again = ray_session._token()
    assert len(again.read_text()) == 64
    assert mode(again) == 0o600
