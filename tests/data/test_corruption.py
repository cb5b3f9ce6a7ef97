"""Corruptions against their published definitions, written out naively or taken from SciPy, and
what their streams depend on.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from bench.data.corruptions.generate import (
    BENCHMARK,
    EXTRA,
    SEVERITIES,
    corrupted,
    disk,
    edges,
    equalised,
    motion_blurred,
    plasma,
    scattered,
    zoomed,
)
from bench.errors import BenchError, UsageError

NAMES = [name for name in BENCHMARK + EXTRA if name != "frost"]


def scene(side: int = 224) -> np.ndarray:
    """Smooth colours with an edge: like a photograph, not like noise."""
    y, x = np.mgrid[:side, :side] / side
    bands = [
        0.5 + 0.3 * np.sin(9 * x + 4 * y),
        0.45 + 0.25 * np.cos(7 * y),
        0.4 + 0.3 * (np.hypot(x - 0.5, y - 0.4) < 0.25),
    ]
    return (np.stack(bands, axis=-1) * 255).astype(np.uint8)


def flat(value: int, side: int = 224) -> np.ndarray:
    return np.full((side, side, 3), value, dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_corrupted_alike_every_time_and_harder_at_severity_5(name: str) -> None:
    image = scene()
    mild, hard = (corrupted(image, name, severity, key="a") for severity in (1, 5))
    assert mild.shape == image.shape
    assert mild.dtype == np.uint8
    assert np.array_equal(mild, corrupted(image, name, 1, key="a"))
    changed = [float(np.abs(made.astype(int) - image).mean()) for made in (mild, hard)]
    assert min(changed) > 0
    # The published severities of the elastic transform are of two kinds: wide waves (1, 2) and fine
    # ones (3-5).
    assert changed[0] < changed[1] or name == "elastic_transform"


def test_seed_image_and_severity_each_give_another_draw() -> None:
    image = flat(128)
    samples = {
        corrupted(image, "gaussian_noise", severity, key=key, seed=seed).tobytes()
        for severity, key, seed in ((1, "a", 0), (1, "b", 0), (1, "a", 1), (2, "a", 0))
    }
    assert len(samples) == 4


def test_frost_is_a_weighted_sum_with_a_piece_of_one_of_the_first_five_photographs() -> None:
    # The pixels of these tell where they come from: red the row, green the column, blue the
    # photograph.
    y, x = np.mgrid[:250, :255]
    photographs = [
        np.stack([y, x, np.full_like(y, 40 * number)], axis=-1).astype(np.uint8)
        for number in range(6)
    ]
    sampled = set()
    for severity, (keep, cover) in enumerate(
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)), start=1
    ):
        for key in "abcd":
            made = corrupted(flat(100), "frost", severity, key=key, photographs=photographs)
            number = round((made[0, 0, 2] - 100 * keep) / cover / 40)
            rows, cols = np.arange(26)[:, None] + (0, 223), np.arange(31)[:, None] + (0, 223)
            (top,) = np.flatnonzero(
                (np.floor(100 * keep + cover * rows + 1e-6) == made[[0, -1], 0, 0]).all(axis=1)
            )[:1]
            (left,) = np.flatnonzero(
                (np.floor(100 * keep + cover * cols + 1e-6) == made[0, [0, -1], 1]).all(axis=1)
            )[:1]
            pasted = photographs[number][top : top + 224, left : left + 224]
            # The corner up to one pixel.
            assert np.abs(made - np.minimum(100 * keep + cover * pasted, 255)).max() < 1 + cover
            sampled.add(number)
    assert sampled == {0, 1, 2, 3, 4}


def test_frost_says_what_it_lacks() -> None:
    for photographs in ([], [flat(0)] * 6):
        with pytest.raises(BenchError, match="5 photographs of more than 224 pixels"):
            corrupted(scene(), "frost", 1, key="a", photographs=photographs)


@pytest.mark.parametrize(("name", "severity"), [("blizzard", 1), ("fog", 0), ("fog", 6)])
def test_unknown_names_and_severities_are_usage_errors(name: str, severity: int) -> None:
    with pytest.raises(UsageError):
        corrupted(scene(), name, severity, key="a")


def test_only_square_uint8_rgb_is_taken() -> None:
    with pytest.raises(UsageError, match="square"):
        corrupted(scene()[:100], "fog", 1, key="a")


@pytest.mark.parametrize(
    ("name", "spread"),
    [
        ("gaussian_noise", (0.08, 0.12, 0.18)),
        ("speckle_noise", (0.5 * 0.15, 0.5 * 0.2, 0.5 * 0.35)),
        ("shot_noise", tuple(math.sqrt(0.5 / photons) for photons in (60, 25, 12))),
    ],
)
def test_noise_has_the_published_standard_deviation(name: str, spread: tuple[float, ...]) -> None:
    for severity, expected in enumerate(spread, start=1):
        made = corrupted(flat(127), name, severity, key="a") / 255
        assert made.std() == pytest.approx(expected, rel=0.03)
        assert made.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_turns_the_published_share_to_black_and_white(severity: int) -> None:
    made = corrupted(flat(127), "impulse_noise", severity, key="a")
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    assert (made == 0).mean() == pytest.approx(share / 2, rel=0.05)
    assert (made == 255).mean() == pytest.approx(share / 2, rel=0.05)


def test_contrast_keeps_the_mean_and_scales_the_deviation() -> None:
    image = scene()
    for severity, factor in enumerate((0.4, 0.3, 0.2, 0.1, 0.05), start=1):
        made = corrupted(image, "contrast", severity, key="a").astype(float)
        assert made.mean() == pytest.approx(image.mean(), abs=0.7)  # values are cut, not rounded
        assert made.std(axis=(0, 1)) == pytest.approx(factor * image.std(axis=(0, 1)), abs=0.5)


def test_brightness_raises_the_value_of_hsv_and_keeps_black_grey() -> None:
    image = flat(100)
    image[0, 0] = 0
    image[0, 1] = (100, 50, 0)
    made = corrupted(image, "brightness", 1, key="a")
    assert made[5, 5].tolist() == [125] * 3
    assert made[0, 0].tolist() == [25] * 3
    assert made[0, 1].tolist() == [125, 62, 0]


def test_saturation_is_scaled_and_grey_turns_red_as_published() -> None:
    image = flat(100)
    image[0, 1] = (100, 80, 60)
    assert (
        np.abs(corrupted(image, "saturate", 1, key="a")[0, 1].astype(int) - (100, 94, 88)).max()
        <= 1
    )
    assert (
        np.abs(corrupted(image, "saturate", 4, key="a")[5, 5].astype(int) - (100, 90, 90)).max()
        <= 1
    )


def test_fog_pulls_towards_the_middle_of_its_range() -> None:
    made = corrupted(scene(), "fog", 5, key="a")
    assert made.std() < scene().std() * 1.5
    assert (
        made.max()
        <= 255 * (scene().max() / 255 + 3) * (scene().max() / 255) / (scene().max() / 255 + 3) + 1
    )


def test_a_scattered_image_is_what_the_published_loop_makes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    for reach in (1, 2, 4):
        moves = iter(
            np.random.default_rng(1).integers(-reach, reach, size=((30 - 2 * reach) ** 2, 2))
        )
        looped = image.copy()
        for row in range(30 - reach, reach, -1):
            for col in range(30 - reach, reach, -1):
                right, down = next(moves)
                looped[row, col] = looped[row + down, col + right]
        assert np.array_equal(scattered(image, reach, np.random.default_rng(1)), looped)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.13, 1.31, 2.5, 4.5])
def test_zooming_is_scipys_linear_zoom_cut_to_the_centre(factor: float) -> None:
    image = np.random.default_rng(0).random((64, 64, 3))
    cut = math.ceil(64 / factor)
    top = (64 - cut) // 2
    whole = ndimage.zoom(image[top : top + cut, top : top + cut], (factor, factor, 1), order=1)
    trim = (len(whole) - 64) // 2
    assert np.allclose(zoomed(image, factor), whole[trim : trim + 64, trim : trim + 64])


def test_motion_blur_is_a_one_sided_trail_of_the_given_length() -> None:
    point = np.zeros((61, 61))
    point[30, 30] = 1
    level, turned = motion_blurred(point, 10, 3, 0), motion_blurred(point, 10, 3, -90)
    assert level.sum() == pytest.approx(1, abs=1e-6)
    assert np.flatnonzero(level[30] > 1e-12).max() == 30
    assert np.flatnonzero(level[30] > 1e-12).min() == 10
    assert level[30, 27] / level[30, 30] == pytest.approx(math.exp(-(3**2) / (2 * 3**2)))
    assert np.allclose(turned[:, 30][::-1], level[30])


def test_a_disk_is_normalised_and_as_wide_as_its_radius() -> None:
    for radius in (3, 4, 6, 8, 10):
        kernel = disk(radius, 0.5)
        # The softened rim of radius 8 is mirrored, as published.
        assert kernel.sum() == pytest.approx(1, abs=0.02)
        inside = kernel > kernel.max() / 2
        assert inside[len(kernel) // 2].sum() == 2 * radius + 1


def test_a_plasma_is_periodic_rough_and_fills_its_range() -> None:
    field = plasma(256, 2.0, np.random.default_rng(0))
    assert (field.min(), field.max()) == (0, 1)
    jump, seam = np.abs(np.diff(field, axis=0)).mean(), np.abs(field[0] - field[-1]).mean()
    assert seam < 3 * jump


def test_edges_lie_on_a_step_and_noise_below_the_threshold_has_none() -> None:
    step = np.zeros((20, 20), dtype=np.uint8)
    step[:, 10:] = 200
    found = edges(step, 50, 150)
    assert set(np.flatnonzero(found.any(axis=0))) <= {9, 10}
    assert found.any(axis=1).all()
    assert not edges((step > 0).astype(np.uint8), 50, 150).any()


def test_equalising_spreads_grey_values_over_the_range() -> None:
    values = equalised(np.repeat(np.arange(100, 110, dtype=np.uint8), 10).reshape(10, 10))
    assert (values.min(), values.max()) == (0, 255)
    assert np.unique(np.diff(np.unique(values))).size <= 2
    constant = np.full((4, 4), 7, dtype=np.uint8)
    assert np.array_equal(equalised(constant), constant)
