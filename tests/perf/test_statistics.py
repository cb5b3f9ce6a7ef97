"""Every interval, test and mark against what it claims, by simulation: `pytest -m perf
tests/perf/test_statistics.py -s`.

The printed rows are the table of docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.leaderboard.board.above_curve import distances, interval
from bench.leaderboard.statistics.intervals import over_images, over_seeds
from bench.leaderboard.statistics.pairs import Pairs, holm, the_method, these_models
from bench.leaderboard.statistics.predictions import Outcomes
from bench.leaderboard.statistics.resampling import Resamples, resampled_scores, resampled_sums
from bench.leaderboard.statistics.tradeoff import offered

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]
Rng = np.random.Generator


def message(what: str, share: float, low: float, high: float, times: int) -> None:
    """Print one row, and hold the share against its claim, give or take three standard errors of
    the simulation.
    """
    slack = 3 * np.sqrt(0.05 * 0.95 / times)
    print(f"\n| {what} | {100 * share:.1f} % | {times:,} |")
    assert low - slack <= share <= high + slack, what


def images(rng: Rng, count: int, skills: np.ndarray, seeds: int = 3) -> np.ndarray:
    """(count, rows, seeds) right or wrong: images differ in difficulty, and the seeds of a row err
    alike but not the same.
    """
    difficulty = rng.normal(0, 2, (count, 1, 1))
    own = rng.normal(0, 1, (count, len(skills), 1))
    return np.asarray(
        skills[None, :, None] - difficulty + own + rng.normal(0, 0.7, (count, len(skills), seeds))
        > 0
    )


def expected(skill: float) -> float:
    """Accuracy of a row of `images` over infinitely many images."""
    return float(stats.norm.cdf(skill / np.sqrt(2**2 + 1 + 0.7**2)))


@pytest.mark.parametrize(
    ("share", "count"), [(0.5, 1500), (0.9, 1500), (0.98, 1500), (0.8, 100), (0.95, 100)]
)
def test_wilson(share: float, count: int) -> None:
    rng, times = np.random.default_rng(0), 4000
    hits = 0
    for right in rng.binomial(count, share, times):
        interval = over_images([(right / count, count)])
        assert interval
        hits += interval.low <= share <= interval.high
    message(
        f"Wilson, {count} images at {100 * share:.0f} % | covers", hits / times, 0.93, 0.97, times
    )


def test_mean_over_shifts() -> None:
    rng, times, truth = np.random.default_rng(1), 4000, np.array([0.8, 0.7, 0.35, 0.6, 0.95])
    counts = np.array([1500, 1500, 1500, 500, 300])
    hits = 0
    for _ in range(times):
        found = rng.binomial(counts, truth) / counts
        interval = over_images(list(zip(found.tolist(), counts.tolist(), strict=True)))
        assert interval
        hits += interval.low <= truth.mean() <= interval.high
    message("Wilson + MOVER, mean over 5 shifts | covers", hits / times, 0.93, 0.97, times)


@pytest.mark.parametrize("seeds", [3, 5])
def test_t_over_seeds(seeds: int) -> None:
    rng, times = np.random.default_rng(2), 4000
    hits = 0
    for values in rng.normal(0.6, 0.01, (times, seeds)):
        interval = over_seeds(values.tolist())
        assert interval
        hits += interval.low <= 0.6 <= interval.high
    message(f"t over {seeds} seeds | covers", hits / times, 0.93, 0.97, times)


def bootstrap(difference: np.ndarray, rng: Rng) -> Resamples:
    return Resamples(resampled_sums(difference / len(difference), 4000, rng), len(difference))


@pytest.mark.parametrize(("count", "skill"), [(1500, 0.5), (300, 0.5), (1500, 3.5)])
def test_paired_bootstrap(count: int, skill: float) -> None:
    rng, times = np.random.default_rng(3), 2000
    skills = np.array([skill, skill + 0.25])
    truth = expected(skills[1]) - expected(skills[0])
    hits = naive = 0
    for _ in range(times):
        right = images(rng, count, skills)
        difference = right[:, 1].mean(axis=1) - right[:, 0].mean(axis=1)
        interval = bootstrap(difference, rng).interval
        hits += interval.low <= truth <= interval.high
        # Every seed's answer taken for one more image.
        each = (right[:, 1].astype(float) - right[:, 0]).ravel()
        half = 1.96 * each.std(ddof=1) / np.sqrt(len(each))
        naive += abs(each.mean() - truth) <= half
    level = f"{count} images at {100 * expected(skill):.0f} %"
    message(f"paired bootstrap, 3 seeds, {level} | covers", hits / times, 0.93, 0.97, times)
    print(
        f"\n| (every seed taken for more images), {level} | covers | {100 * naive / times:.1f} % |"
        f" {times:,} |"
    )


def test_paired_beats_unpaired() -> None:
    rng, count = np.random.default_rng(4), 1500
    for gain, claim, times in ((0.0, "rejects where nothing differs", 8000), (0.2, "power", 1500)):
        skills = np.array([0.5, 0.5 + gain])
        boot = exact = unpaired = 0
        for _ in range(times):
            right = images(rng, count, skills, seeds=1)[:, :, 0]
            boot += bootstrap(right[:, 1].astype(float) - right[:, 0], rng).p <= 0.05
            only = int((right[:, 0] & ~right[:, 1]).sum()), int((right[:, 1] & ~right[:, 0]).sum())
            exact += stats.binomtest(only[0], sum(only)).pvalue <= 0.05 if sum(only) else False
            pooled, difference = right.mean(), abs(right[:, 0].mean() - right[:, 1].mean())
            unpaired += difference > 1.96 * np.sqrt(2 * pooled * (1 - pooled) / count)
        if not gain:
            message(f"paired bootstrap | {claim}", boot / times, 0.0, 0.05, times)
            message(f"exact McNemar | {claim}", exact / times, 0.0, 0.05, times)
            continue
        print(f"\n| paired bootstrap | {claim} | {100 * boot / times:.1f} % | {times:,} |")
        print(f"\n| exact McNemar | {claim} | {100 * exact / times:.1f} % | {times:,} |")
        print(
            f"\n| unpaired test of two shares | {claim} | {100 * unpaired / times:.1f} % |"
            f" {times:,} |"
        )
        assert min(boot, exact) > unpaired


def test_holm_over_datasets() -> None:
    rng, times = np.random.default_rng(5), 3000
    wrong = 0
    for _ in range(times):
        shared = rng.normal(0, 0.01, (5, 1))
        p = stats.ttest_1samp(shared + rng.normal(0, 0.01, (5, 10)), 0).pvalue
        wrong += holm(p).min() <= 0.05
    message(
        "Holm over 10 datasets, the method, 5 seeds | any false positive",
        wrong / times,
        0.0,
        0.05,
        times,
    )


def marks(
    sample: Callable[[Rng], tuple[Pairs, np.ndarray]], times: int
) -> tuple[float, float, float]:
    """How often a truly best row is not marked; no truly best row is; how many rows are marked on
    average.
    """
    rng = np.random.default_rng(6)
    any_lost, all_lost, marked = 0, 0, 0
    for _ in range(times):
        pairs, truth = sample(rng)
        best = np.isclose(truth, truth.max())
        tied = pairs.tied_with_best
        any_lost += not tied[best].all()
        all_lost += not tied[best].any()
        marked += tied.sum()
        low, high = np.array(pairs.ranks).T
        assert (low <= high).all()
    return any_lost / times, all_lost / times, marked / times


#: As docs/statistics.md words it -> skills of the rows.
MODELS = {
    "8 equal rows": np.full(8, 0.5),
    "8 equal rows at 97 %": np.full(8, 4.4),
    "3 equal best of 8": np.array([0.6, 0.6, 0.6, 0.4, 0.3, 0.2, 0.0, -1.0]),
    "1 best of 8, close": np.array([0.6, 0.5, 0.5, 0.4, 0.3, 0.2, 0.0, -1.0]),
    "25 equal rows": np.full(25, 0.5),
}
#: The same -> true accuracies of the rows, and their SDs over seeds.
METHODS = {
    "3 equal best of 6": (
        [0.66, 0.66, 0.66, 0.60, 0.55, 0.5],
        [0.01, 0.02, 0.005, 0.01, 0.01, 0.0],
    ),
    "8 equal rows": ([0.66] * 8, [0.01] * 8),
    "8 equal rows, SDs from 0.1 to 3 points": (
        [0.66] * 8,
        [0.001, 0.002, 0.004, 0.008, 0.016, 0.016, 0.03, 0.03],
    ),
    "2 equal best of 4, one of them without a seed": (
        [0.66, 0.66, 0.6, 0.5],
        [0.0, 0.01, 0.01, 0.01],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_ties_of_models(name: str) -> None:
    skills = MODELS[name]

    def sample(rng: Rng) -> tuple[Pairs, np.ndarray]:
        strata = [images(rng, 1000, skills).mean(axis=2) / 2000 for _ in range(2)]
        return these_models(strata), skills

    times = 2000 if np.ptp(skills) == 0 and len(skills) < 10 else 500
    lost, gone, shown = marks(sample, times)
    message(f"ties, these models: {name} | a best row unmarked", lost, 0.0, 0.05, times)
    print(
        f"\n| ties, these models: {name} | no best row marked; rows marked | {100 * gone:.1f} %;"
        f" {shown:.1f} | {times:,} |"
    )


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("name", METHODS)
def test_ties_of_methods(name: str, seeds: int) -> None:
    truth, spread = METHODS[name]
    # What rows share through a seed moves only those that depend on it.
    moved = np.array(spread) > 0

    def sample(rng: Rng) -> tuple[Pairs, np.ndarray]:
        shared = 0.005 * rng.standard_normal((seeds, 1)) * moved
        by_seed = truth + np.array(spread) * rng.standard_normal((seeds, len(truth))) + shared
        return the_method(by_seed, (~moved).tolist()), np.array(truth)

    times = 4000
    lost, _, shown = marks(sample, times)
    message(
        f"ties, the method, {seeds} seeds: {name} | a best row unmarked", lost, 0.0, 0.05, times
    )
    print(f"\n| ties, the method, {seeds} seeds: {name} | rows marked | {shown:.1f} | {times:,} |")


def interpolated(
    rng: Rng,
    start: float,
    end: float,
    bend: float,
    method: tuple[float, float],
    count: int,
    seeds: int,
) -> Any:
    """Right or wrong, (count, seeds, 12): 11 points from start to end (margins interpolate, with a
    bend), and a method.

    Args:
        method: place between the ends, and gain.
    """
    alphas, (at, gain) = np.linspace(0, 1, 11), method
    difficulty = rng.normal(0, 2, (count, 1, 1))
    first, last = (
        start - difficulty + rng.normal(0, 1, (count, 1, 1)),
        end - difficulty + rng.normal(0, 1, (count, 1, 1)),
    )
    last = last + rng.normal(0, 0.7, (count, seeds, 1))
    line = (1 - alphas) * first + alphas * last + bend * 4 * alphas * (1 - alphas)
    own = (1 - at) * first + at * last + gain + rng.normal(0, 0.8, (count, seeds, 1))
    return np.concatenate([line, own], axis=2) > 0


def on_all_images(
    start: float, end: float, bend: float, method: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Accuracies of the points and of the method of `interpolated` over infinitely many images."""
    alphas, (at, gain) = np.linspace(0, 1, 11), method

    def spread(a: Any) -> Any:
        return np.sqrt(2**2 + (1 - a) ** 2 + a**2 * (1 + 0.7**2))

    curve = stats.norm.cdf(
        ((1 - alphas) * start + alphas * end + bend * 4 * alphas * (1 - alphas)) / spread(alphas)
    )
    return curve, float(
        stats.norm.cdf(((1 - at) * start + at * end + gain) / np.hypot(spread(at), 0.8))
    )


@pytest.mark.parametrize(
    ("name", "ood", "gain"),
    [
        ("OOD falls", (1.2, 0.4, 0.4), 0.6),
        ("OOD rises and falls", (1.0, 0.9, 0.3), 0.9),
        ("OOD is flat", (0.6, 0.6, 0.0), 0.0),
    ],
)
def test_above_the_curve(name: str, ood: tuple[float, float, float], gain: float) -> None:
    rng, times, count, seeds = np.random.default_rng(7), 600, 1500, 3
    sets = {
        "id-test": ((0.9, 3.5, 0.5), (0.5, 0.3)),
        "a": (ood, (0.5, gain)),
        "b": (ood, (0.5, gain)),
    }
    true_labels = {key: on_all_images(*shape, method) for key, (shape, method) in sets.items()}
    offer = offered(
        true_labels["id-test"][0][None],
        true_labels["a"][0][None],
        np.array([true_labels["id-test"][1]]),
    )[0]
    truth, blank = true_labels["a"][1] - offer, 0
    hits = naive = 0
    paired = [(12 * seed + 11, slice(12 * seed, 12 * seed + 11)) for seed in range(seeds)]
    keys = {key: np.array([f"{key}{i:05d}" for i in range(count)]) for key in sets}
    for _ in range(times):
        right = {
            k: interpolated(rng, *shape, method, count, seeds).reshape(count, -1)
            for k, (shape, method) in sets.items()
        }
        ones = np.ones(count, dtype=int)
        models = [
            {k: Outcomes(keys[k], ones, right[k][:, m].astype(int), ones) for k in sets}
            for m in range(12 * seeds)
        ]
        found = {key: x.mean(axis=0)[None] for key, x in right.items()}
        estimate = float(distances(found["id-test"], (found["a"] + found["b"]) / 2, paired)[0])
        sampled = resampled_scores(models, dict.fromkeys(sets, "accuracy"), 400, rng)
        samples = distances(sampled["id-test"], (sampled["a"] + sampled["b"]) / 2, paired)
        made = interval(estimate, samples)
        if isinstance(made, str):
            blank += 1
            continue
        hits += made.low <= truth <= made.high
        naive += np.quantile(samples, 0.025) <= truth <= np.quantile(samples, 0.975)
    message(
        f"above the curve, 3 seeds, 1,500 images a set: {name} | covers",
        hits / (times - blank),
        0.93,
        0.97,
        times - blank,
    )
    print(
        f"\n| (percentiles of the same draws): {name} | covers |"
        f" {100 * naive / (times - blank):.1f} % | {times - blank:,} |"
    )
    assert not blank
