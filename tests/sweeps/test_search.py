"""How trials are drawn: the same number for every method, alike in every process, shared by the
stages that methods share.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from bench.configure import build_method
from bench.results.record import RunRecord, SplitMetrics
from bench.sweeps.search.samplers import best_of, sampler, trial_of

RECIPE: dict[str, Any] = {"lr": 1e-3, "weight": 6.0, "weight_unit": "teacher_ms"}


def rates(name: str, kind: str, trials: int = 6) -> list[float]:
    method = build_method(name, {}, RECIPE)
    sampled = [sampler(kind, trials).trial(method, number, (), ()) for number in range(trials)]
    # A wrapper's or a method's own.
    return [getattr(getattr(one, "of", one), "lr") for one in sampled]  # noqa: B009


@pytest.mark.parametrize("kind", ["random", "grid"])
def test_a_wrapped_stage_draws_what_it_draws_alone(kind: str) -> None:
    assert rates("wise-ft", kind) == rates("full-finetune", kind)
    assert len(set(rates("full-finetune", kind))) == 6
    assert rates("full-finetune", kind)[0] == RECIPE["lr"], "trial 0 is the recipe as it stands"


def test_a_grid_covers_its_range_evenly() -> None:
    lr = sorted(rates("full-finetune", "grid", 7)[1:])
    ratios = [high / low for low, high in pairwise(lr)]
    assert ratios == pytest.approx([ratios[0]] * 5, rel=0.02), (
        "six log-uniform levels for six trials beside the recipe"
    )


def test_every_method_gets_all_trials_of_a_grid_whatever_its_dimension() -> None:
    method = build_method("feature-distillation", {}, RECIPE)
    sampled = {
        sampler("grid", 10).trial(method, number, (), ()).model_dump_json() for number in range(10)
    }
    assert len(sampled) == 10


def test_what_the_user_sets_is_not_sampled() -> None:
    method = build_method("wise-ft", {"of.lr": 2e-3}, RECIPE)
    assert trial_of(method, 3, {"of.lr"}).of.lr == 2e-3  # type: ignore[attr-defined]


def record(score: float, nll: float, status: Any = "done") -> RunRecord:
    metrics = SplitMetrics(
        images=1,
        score=score,
        accuracy=score,
        class_mean=score,
        macro_f1=score,
        nll=nll,
        ece=0,
        brier=0,
    )
    values: dict[str, Any] = {
        "label": "",
        "backbone": "",
        "backbone_sha256": "",
        "suite": "",
        "seed": 0,
        "fit_id": "",
    }
    return RunRecord(status=status, method={"name": "m"}, metrics={"id-val": metrics}, **values)


def test_the_best_is_by_score_then_nll_then_first() -> None:
    assert best_of([record(0.5, 1.0), record(0.6, 2.0), record(0.6, 1.5), record(0.6, 1.5)]) == 2
    assert best_of([record(0.9, 1.0, "failed"), record(0.1, 1.0)]) == 1
    assert best_of([record(0.9, 1.0, "failed")]) is None


def test_tpe_looks_at_earlier_trials_and_repeats_itself() -> None:
    pytest.importorskip("optuna")
    method = build_method("full-finetune", {}, RECIPE)

    def search(best: float) -> list[float]:
        """Rates of 14 trials where id-val is best at the rate `best`."""
        tpe, history, found = sampler("tpe", 14), [], []
        for number in range(14):
            lr: float = tpe.trial(method, number, (), history).lr  # type: ignore[attr-defined]
            found.append(lr)
            history.append(record(1 - abs(lr - best) / 5e-3, 1.0))
        return found

    assert search(5e-3) == search(5e-3)
    assert sum(search(5e-3)[-4:]) > sum(search(2e-4)[-4:]), (
        "later trials go where earlier ones did well"
    )
