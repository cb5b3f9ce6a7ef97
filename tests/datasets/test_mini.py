"""The mini world: what a split shows is what its card says, and the same seed gives the same
bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.data.cards.inheritance import read_table
from bench.datasets import cards
from bench.datasets.mini import MiniWorld
from bench.datasets.mini.render import CHUNK
from bench.datasets.mini.scenes import HOME, Scenes
from bench.datasets.mini.silhouettes import CLASSES, distance_bank, stream
from bench.datasets.mini.styles import STYLES
from bench.errors import UsageError

from mini_captions import vocabulary, write_captions

CARDS = ("mini-shifts", "mini-shifts-bias0", "mini-shifts-bias60", "mini-shifts-bias75")
IMAGES = 20 * CHUNK


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def card(name: str) -> dict:  # type: ignore[type-arg]
    return read_table(cards()[name])


def scenes(world: MiniWorld, split: str) -> list[Scenes]:
    return [world.scenes(split, chunk) for chunk in range(IMAGES // CHUNK)]


def share_at_home(world: MiniWorld, split: str) -> float:
    return float(torch.cat([part.at_home for part in scenes(world, split)]).float().mean())


@pytest.mark.parametrize("split", ["train", "sketch", "rendition", "objectnet", "corrupted"])
def test_the_same_seed_gives_the_same_bits_whatever_the_number_of_threads(split: str) -> None:
    torch.set_num_threads(1)
    alone = MiniWorld(seed=3, train_size=250, test_size=250).render(split)
    torch.set_num_threads(3)
    together = MiniWorld(seed=3, train_size=250, test_size=250).render(split)
    assert torch.get_num_threads() == 3
    assert np.array_equal(alone.pixels, together.pixels)
    assert np.array_equal(alone.groups, together.groups)


def test_every_split_is_the_same_bits_on_every_machine() -> None:
    """A pinned hash: identity is by content, so runs of two machines are comparable only while this
    passes on both.
    """
    world = MiniWorld(train_size=CHUNK, val_size=CHUNK, test_size=CHUNK)
    sha = hashlib.sha256(b"".join(world.render(split).pixels.tobytes() for split in world.splits))
    assert sha.hexdigest() == "5d4dcc2259bc78138e7276437328cd743a2f7372d78c59451a4a91c0d9151844"


def test_another_seed_gives_other_images() -> None:
    one, two = (MiniWorld(seed=seed, test_size=20).render("id-test").pixels for seed in (1, 2))
    assert (one != two).mean() > 0.9


def test_a_larger_split_begins_with_the_smaller_one() -> None:
    small = MiniWorld(seed=3, test_size=70).render("rendition")
    large = MiniWorld(seed=3, test_size=130).render("rendition")
    assert small.pixels.shape == (70, 48, 48, 3)
    assert np.array_equal(small.pixels, large.pixels[:70])


def test_every_split_is_balanced_over_the_classes() -> None:
    world = MiniWorld(train_size=100, val_size=100, test_size=100)
    for split in world.splits:
        rendered = world.render(split)
        assert rendered.pixels.dtype == np.uint8
        assert rendered.labels.dtype == rendered.groups.dtype == np.int64
        assert np.bincount(rendered.labels, minlength=20).tolist() == [5] * 20
        assert 0 <= rendered.groups.min() <= rendered.groups.max() < len(rendered.group_names)


@pytest.mark.parametrize("bias", [0.0, 0.6, 0.75, 0.9])
@pytest.mark.parametrize(
    "split", ["train", "id-val", "id-test", "v2", "viewpoint", "sketch-in-context"]
)
def test_where_context_is_unchanged_a_class_is_at_home_as_often_as_the_bias_says(
    split: str, bias: float
) -> None:
    placed = bias * (0.7 if split == "v2" else 1.0)
    # A uniform background is the class's own one time in a hundred.
    expected = placed + (1 - placed) / 100
    spread = max(np.sqrt(expected * (1 - expected) / IMAGES), 1 / IMAGES)
    assert abs(share_at_home(MiniWorld(bias=bias, seed=5), split) - expected) < 4 * spread


@pytest.mark.parametrize("split", ["sketch", "rendition", "objectnet"])
def test_where_context_is_broken_a_class_is_at_home_by_chance_alone(split: str) -> None:
    assert share_at_home(MiniWorld(bias=0.9, seed=5), split) < 0.02


def test_adversarial_images_show_the_home_of_another_class() -> None:
    homes = set(zip(HOME.family.tolist(), HOME.ground.tolist(), strict=True))
    assert len(homes) == 20
    for part in scenes(MiniWorld(seed=5), "adversarial"):
        assert not part.at_home.any()
        assert set(zip(part.family.tolist(), part.ground.tolist(), strict=True)) <= homes


def test_object_and_background_never_have_the_same_colour() -> None:
    for split in MiniWorld.splits:
        for part in scenes(MiniWorld(seed=5), split)[:3]:
            assert (part.paint != part.ground).all()


@pytest.mark.parametrize(
    ("split", "other", "changed"),
    [
        ("sketch", "sketch-in-context", {"context"}),
        ("rendition", "rendition-in-context", {"context"}),
        ("objectnet", "viewpoint", {"context"}),
        ("id-test", "adversarial", {"context"}),
        ("id-test", "corrupted", {"corruption"}),
    ],
)
def test_splits_that_are_compared_show_the_same_scenes_but_for_one_factor(
    split: str, other: str, changed: set[str]
) -> None:
    factors = {
        "style": ["style"],
        "context": ["family", "ground"],
        "geometry": [
            "variant",
            "scale",
            "rotation",
            "squash",
            "shear",
            "mirror",
            "x",
            "y",
            "occluder",
        ],
        "corruption": ["corruption"],
    }
    world = MiniWorld(seed=5)
    one, two = world.scenes(split, 0), world.scenes(other, 0)
    for factor, names in factors.items():
        same = all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
        assert same == (factor not in changed), factor


@pytest.mark.parametrize("name", CARDS)
def test_the_factors_on_the_card_are_those_of_the_scenes(name: str) -> None:
    content = card(name)
    world = MiniWorld(**content["source"]["options"])
    training = world.scenes("train", 0)
    for shift in content["shifts"]:
        part = world.scenes(shift["path"], 0)
        factors = shift["factors"]
        assert (set(part.style.tolist()) == {0}) == (factors["style"] == "kept")
        turned = part.rotation.std() > 1.5 * training.rotation.std()
        assert bool(turned) == (factors["geometry"] == "changed")
        if world.bias > 0:
            ratio = share_at_home(world, shift["path"]) / share_at_home(world, "train")
            assert ratio == pytest.approx(
                {"kept": 1.0, "weakened": 0.7, "broken": 0.0}[factors["context"]], abs=0.06
            )


@pytest.mark.parametrize("name", [*CARDS, "mini-shifts-small", "mini-shifts-large"])
def test_a_card_and_the_world_agree_on_classes_splits_and_counts(name: str) -> None:
    content = card(name)
    world = MiniWorld(**content["source"]["options"])
    assert content["name"] == name
    assert tuple(content["classes"]) == world.classes == CLASSES
    used = [content["id"][part] for part in ("train", "val", "test")] + [
        shift["path"] for shift in content["shifts"]
    ]
    assert set(used) == set(world.splits)
    for shift in content["shifts"]:
        assert shift["count"] == world.size(shift["path"]) >= 1500


def test_photos_have_colour_and_sketches_do_not() -> None:
    world = MiniWorld(test_size=40)
    assert np.ptp(world.render("sketch").pixels, axis=3).max() == 0
    assert np.ptp(world.render("id-test").pixels.astype(int), axis=3).mean() > 30


def test_every_silhouette_fits_its_field_and_differs_from_the_others() -> None:
    bank = distance_bank()
    edge = np.concatenate(
        [bank[..., 0, :], bank[..., -1, :], bank[..., :, 0], bank[..., :, -1]], axis=-1
    )
    assert (edge > 0).all()
    inside = bank[:, 0] < 0
    share = inside.mean(axis=(1, 2))
    assert share.min() > 0.04
    assert share.max() < 0.6
    overlap = [(a & b).sum() / (a | b).sum() for i, a in enumerate(inside) for b in inside[:i]]
    assert max(overlap) < 0.85


def test_an_unknown_split_or_a_wrong_option_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no split 'skecth'"):
        MiniWorld().render("skecth")
    with pytest.raises(UsageError, match="probability"):
        MiniWorld(bias=1.5)
    with pytest.raises(UsageError, match="test_size"):
        MiniWorld(test_size=0)


def test_captions_use_the_vocabulary_and_name_the_object_most_of_the_time() -> None:
    part = MiniWorld(seed=5).scenes("rendition", 0)
    captions, named = write_captions(part, stream("test captions"))
    known = {*vocabulary(), "zzz"}
    assert all(word in known for caption in captions for word in caption.split())
    right = (torch.tensor(named) == part.label).float().mean()
    assert 0.6 < right < 0.95
    assert len(STYLES) == 8
