from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from bench.data.cards.suite_card import RenderedSource, SuiteCard
from bench.data.pixels.decoder import Pixels
from bench.data.rendered import rendered_split
from bench.data.suite import open_suite
from bench.errors import BenchError, MissingPrerequisite
from bench.plugins import entries

Make = Callable[..., SuiteCard]

_WORLD = """
from types import SimpleNamespace
import numpy as np
from .brush import SHADE

class World:
    def __init__(self, size=30, wrong=False):
        self.size, self.wrong = size, wrong

    def render(self, split):
        with open({log!r}, "a") as log:
            log.write(split + "\\n")
        count = self.size if split == "train" else 9
        rng = np.random.default_rng(len(split))
        pixels = rng.integers(0, SHADE, (count, 12, 12, 3), dtype=np.uint8)
        labels = np.arange(count) % (4 if self.wrong else 3)
        return SimpleNamespace(pixels=pixels, labels=labels, groups=labels % 2)
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Name of a world in a package of its own, which logs what it renders."""
    package = f"painted_{abs(hash(request.node.name))}"
    folder = tmp_path / "plug-in" / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "brush.py").write_text("SHADE = 200\n")
    (folder / "world.py").write_text(_WORLD.format(log=str(tmp_path / "log")))
    monkeypatch.syspath_prepend(str(tmp_path / "plug-in"))
    name = f"{package}.world:World"
    monkeypatch.setitem(entries("bench.worlds"), name, EntryPoint(name, name, "bench.worlds"))
    return name


@pytest.fixture
def card(card_of: Make, world: str) -> Callable[..., SuiteCard]:
    def make(**options: object) -> SuiteCard:
        return card_of(
            source={"kind": "rendered", "world": world, "options": options},
            id={"train": "train", "val": "val", "test": "test"},
            shifts=[{"name": "fog", "path": "foggy", "count": 9}],
        )

    return make


def test_a_rendered_suite_needs_no_data_root_and_renders_each_split_once(
    card: Make, tmp_path: Path
) -> None:
    for _ in range(2):
        suite = open_suite(card())
        sizes = {
            name: len(suite.load(name, Pixels(size=12, resize=12))) for name in suite.split_names
        }
    assert sizes == {"train": 30, "id-val": 9, "id-test": 9, "fog": 9}
    assert (tmp_path / "log").read_text().split() == ["train", "val", "test", "foggy"]


def test_keys_lead_back_to_the_rendered_images(card: Make, world: str, tmp_path: Path) -> None:
    split = open_suite(card()).load("fog", Pixels(size=12, resize=12))
    rendered = rendered_split(
        RenderedSource(kind="rendered", world=world), "foggy", cache=tmp_path / "other"
    )
    numbers = [int(str(key).removeprefix("foggy/")) for key in split.keys]
    np.testing.assert_array_equal(split.take(np.arange(9)), np.load(rendered.pixels)[numbers])
    np.testing.assert_array_equal(
        np.asarray(split.original(4)), np.load(rendered.pixels)[numbers[4]]
    )
    np.testing.assert_array_equal(split.labels, rendered.labels[numbers])
    assert split.groups is not None
    np.testing.assert_array_equal(split.groups, split.labels % 2)


def test_other_options_or_other_source_render_again(card: Make, tmp_path: Path) -> None:
    pixels = Pixels(size=12, resize=12)
    first = open_suite(card()).load("train", pixels).fingerprint
    assert open_suite(card(size=24)).load("train", pixels).fingerprint != first
    brush = next((tmp_path / "plug-in").glob("*/brush.py"))
    brush.write_text("SHADE = 200  # edited\n")
    assert open_suite(card()).load("train", pixels).fingerprint == first
    assert (tmp_path / "log").read_text().split() == ["train"] * 3


def test_a_label_beyond_the_classes_is_an_error(card: Make) -> None:
    with pytest.raises(BenchError, match="not the number of a class"):
        open_suite(card(wrong=True)).load("train", Pixels(size=12, resize=12))


@pytest.mark.parametrize(
    "name", ["no_such_package:World", "subprocess:Popen", "json", "painted.world:World"]
)
def test_a_card_reaches_no_code_that_is_not_registered(
    name: str, card_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "painted").mkdir()
    (tmp_path / "painted" / "world.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = {
        "kind": "rendered",
        "world": name,
        "options": {"args": ["touch", str(tmp_path / "ran")]},
    }
    parts = {
        "id": {"train": "train", "val": "val", "test": "test"},
        "shifts": [{"name": "fog", "path": "foggy", "count": 9}],
    }
    with pytest.raises(MissingPrerequisite, match=f"no world `{name}`"):
        open_suite(card_of(source=source, **parts)).load("train", Pixels(size=12, resize=12))
    assert not (tmp_path / "ran").exists()
