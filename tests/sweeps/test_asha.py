"""A search that is cut short: who goes on, what is trained, what is counted, and that it is marked
wherever it shows.
"""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import Interrupted, UsageError
from bench.results.record import RunRecord
from bench.results.store import Store
from bench.run_spec import SEARCH_SEED
from bench.sweeps.job import JobResult
from bench.sweeps.search.asha import epochs_expected, promoted, rungs, stop_at
from bench.sweeps.sweep_spec import sweep_spec

from support.tiny_sweeps import Listener, plan

#: Two wrappers of one fine-tuning, and a method that has nothing to cut.
METHODS = ("wise-ft", "wise-ft:alpha=0.3", "linear-probe")
#: Rungs after epochs 1 and 2 of 4; of nine trials three go on from the first, and one from the
#: second.
FIELDS = {"trials": 9, "asha": True, "seeds": (0,), "set": {"epochs": 4}}


def test_rungs_are_at_a_ninth_and_a_third_of_the_schedule() -> None:
    assert {
        epochs: [stop_at(share, epochs) for share in rungs(epochs)]
        for epochs in (1, 2, 3, 9, 10, 100)
    } == {
        1: [],
        2: [1],
        3: [1],
        9: [1, 3],
        10: [2, 4],
        100: [12, 34],
    }
    assert rungs(10) == (Fraction(1, 9), Fraction(1, 3))


def test_the_best_third_goes_on_and_of_a_closed_rung_at_least_one() -> None:
    scores = {"a": (0.5, 1.0), "b": (0.7, 1.0), "c": (0.7, 0.9), "d": (0.1, 1.0)}
    assert list(promoted(scores, closed=False)) == ["c"]
    assert list(promoted({name: scores[name] for name in "ab"}, closed=False)) == []
    assert list(promoted({name: scores[name] for name in "ab"}, closed=True)) == ["b"]
    assert promoted({}, closed=True) == []


def test_nine_trials_cost_a_third_of_nine_schedules() -> None:
    assert epochs_expected(9, 9) == 9 * 1 + 3 * 2 + 1 * 6


@pytest.fixture(scope="module")
def halved(tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Listener]:
    """Trained by a clock that moves on by a second whenever it is looked at: once per step, and as
    an epoch ends.
    """
    store, listener = tmp_path_factory.mktemp("asha"), Listener()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.training.loop.time", SimpleNamespace(monotonic=count().__next__))
        plan(tiny_suite, store, *METHODS, **FIELDS).run(listener)
    assert {outcome.status for _, outcome in listener.ends} == {"done"}
    return store, listener


def searched(store: Path) -> list[RunRecord]:
    return [record for _, record in Store(store).records() if record.phase == "search"]


def finals(store: Path) -> dict[object, RunRecord]:
    """By alpha, which the probe does not have."""
    found = [record for _, record in Store(store).records() if record.phase == "final"]
    return {record.method["parameters"].get("alpha"): record for record in found}


def epochs_of_trials(store: Path) -> dict[str, list[int]]:
    """The epochs of every fine-tuning of the search, as its log tells them one after another."""
    found = {}
    for log in store.glob("fits/*/log.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        fit = Store(store).fit(log.parent.name)
        if fit is None or fit.identity["seed"] == SEARCH_SEED:
            found[log.parent.name] = [line["epoch"] for line in lines if line["event"] == "epoch"]
    return found


def test_a_trial_stops_at_a_rung_or_goes_to_its_end_and_no_epoch_is_trained_twice(
    halved: tuple[Path, Listener],
) -> None:
    store, listener = halved
    trained = epochs_of_trials(store)
    assert len(trained) == 9, (
        "both wrappers are judged at the rungs by what they wrap, which is trained once"
    )
    assert all(epochs in ([1], [1, 2], [1, 2, 3, 4]) for epochs in trained.values())
    # Results come one by one, so a later one may still overtake one that went on already.
    assert 3 <= sum(len(epochs) >= 2 for epochs in trained.values()) < 9
    assert 1 <= sum(len(epochs) == 4 for epochs in trained.values()) < 4
    resumed = {
        4 * fields["step"] / fields["total"]
        for _, kind, fields in listener.events
        if kind == "resumed"
    }
    assert resumed == {1, 2}, "from the very end of an epoch"


def test_the_best_of_the_whole_trials_is_chosen_and_says_how(halved: tuple[Path, Listener]) -> None:
    store, _ = halved
    for alpha, final in finals(store).items():
        trials = [
            record
            for record in searched(store)
            if record.method["parameters"].get("alpha") == alpha
        ]
        best = max(record.metrics["id-val"].score for record in trials)
        chosen = [record for record in trials if record.method == final.method]
        assert [record.metrics["id-val"].score for record in chosen] == [best]
        assert (final.search_rule, final.search_cut_short) == (
            "random",
            alpha is not None,
        ), "of the probe nothing was cut"
    assert {alpha: record.search_trials for alpha, record in finals(store).items()} == {
        0.5: 9,
        0.3: 9,
        None: 1,
    }


def test_what_was_spent_on_trials_that_were_cut_counts(halved: tuple[Path, Listener]) -> None:
    store, _ = halved
    fits = Store(store).fit
    alike = [
        record for record in searched(store) if record.method["parameters"].get("alpha") == 0.5
    ]
    ends = {
        nested
        for record in alike
        for nested in fits(record.fit_id).nested  # type: ignore[union-attr]
    }
    cut = [
        max(one["seconds"] for one in Store(store).epochs(fit))
        for fit in epochs_of_trials(store)
        if fit not in ends
    ]
    (probe,) = {nested for end in ends for nested in fits(end).nested}  # type: ignore[union-attr]
    assert len(cut) + len(alike) == 9
    whole = sum(
        fits(fit_id).seconds for fit_id in {record.fit_id for record in alike} | ends | {probe}
    )  # type: ignore[union-attr]
    assert finals(store)[0.5].search_seconds == pytest.approx(whole + sum(cut)), (
        "each training once, the probe's included"
    )


def test_the_seconds_of_a_trial_that_went_on_are_those_of_all_its_attempts(
    halved: tuple[Path, Listener],
) -> None:
    store, _ = halved
    paused = [
        Store(store).epochs(fit)
        for fit, epochs in epochs_of_trials(store).items()
        if epochs == [1, 2]
    ]
    assert paused
    # Four steps and the end of the epoch; the save at the rung; and the same four steps and end
    # again.
    assert [[one["seconds"] for one in epochs] for epochs in paused] == [[5, 11]] * len(paused)


def test_no_look_at_a_shift(halved: tuple[Path, Listener]) -> None:
    store, listener = halved
    assert all(set(record.metrics) == {"id-val"} for record in searched(store))
    seen = {
        fields["split"]
        for job, kind, fields in listener.events
        if kind == "evaluate" and job.phase != "final"
    }
    assert seen <= {"id-val"}


def test_the_same_sweep_again_does_nothing(tiny_suite: Path, halved: tuple[Path, Listener]) -> None:
    store, _ = halved
    again = plan(tiny_suite, store, *METHODS, **FIELDS)
    assert again.queue.over
    assert not again.queue.unfinished


@pytest.mark.slow
def test_a_stop_is_continued_and_trains_no_epoch_twice(tiny_suite: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        plan(tiny_suite, tmp_path, "full-finetune", **FIELDS).run(Listener(stop_at=("epoch", 10)))
    planned = plan(tiny_suite, tmp_path, "full-finetune", **FIELDS)
    planned.run(Listener())
    assert all(
        epochs in ([1], [1, 2], [1, 2, 3, 4]) for epochs in epochs_of_trials(tmp_path).values()
    )
    assert [record.status for record in planned.records()] == ["done"]
    assert plan(tiny_suite, tmp_path, "full-finetune", **FIELDS).queue.over


@pytest.mark.slow
def test_shards_in_turn_come_to_one_choice_and_train_no_epoch_twice(
    tiny_suite: Path, tmp_path: Path
) -> None:
    starts, listener, left = 0, Listener(), True
    while left:
        shards = [
            plan(tiny_suite, tmp_path, "full-finetune", shard=(i, 2), **FIELDS) for i in (1, 2)
        ]
        left = any(shard.queue.unfinished or shard.queue.elsewhere for shard in shards)
        for shard in shards:
            shard.run(listener)
            if starts == 0 and shard is shards[0]:
                alone = epochs_of_trials(tmp_path)
                assert 2 < len(alone) < 9
                assert set(map(len, alone.values())) == {1}, (
                    "nobody goes on before all have come to the rung"
                )
        starts += 1
        assert starts < 6, "two rungs, the end and the final run"
    trained = epochs_of_trials(tmp_path)
    assert len(trained) == 9
    assert all(epochs in ([1], [1, 2], [1, 2, 3, 4]) for epochs in trained.values())
    for epoch in (1, 2):
        known = {
            fit: Store(tmp_path).epochs(fit)[epoch - 1]
            for fit, epochs in trained.items()
            if len(epochs) >= epoch
        }
        best = promoted(
            {fit: (one["id_val"], one["id_val_nll"]) for fit, one in known.items()}, closed=True
        )
        assert set(best) == {fit for fit, epochs in trained.items() if len(epochs) > epoch}, (
            "of what both shards brought there"
        )
    (final,) = finals(tmp_path).values()
    top = max(
        searched(tmp_path),
        key=lambda one: (one.metrics["id-val"].score, -one.metrics["id-val"].nll),
    )
    assert (final.status, final.method) == ("done", top.method)


#: A fine-tuning of which a search draws one of two, and a wrapper of which it draws more.
TWO = """
from torch.nn.functional import cross_entropy
from bench import FineTuner, Space, searched
class Two(FineTuner):
    name = "two"
    lr: float = 1e-3
    smoothing: float = searched(0.0, Space(choices=(0.0, 0.2)))
    def loss(self, batch, student, teacher, constants):
        return cross_entropy(student(batch.images), batch.labels, label_smoothing=self.smoothing)
"""
WRAPS = """
from bench import Space, searched
from bench.methods.wise_ft import WiSEFT
class Wraps(WiSEFT):
    name = "wraps"
    alpha: float = searched(0.5, Space(low=0.1, high=0.9))
"""


@pytest.mark.slow
def test_a_training_that_several_trials_share_counts_once(tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "wraps.py").write_text(WRAPS)
    (tmp_path / "two.py").write_text(TWO)
    method = f"{tmp_path / 'wraps.py'}:of={tmp_path / 'two.py'}"
    planned = plan(
        tiny_suite, tmp_path / "s", method, trials=6, asha=True, seeds=(0,), set={"epochs": 2}
    )
    planned.run(Listener())
    trained = {fit: epochs for fit, epochs in epochs_of_trials(tmp_path / "s").items() if epochs}
    assert sorted(trained.values()) == [[1], [1, 2]]
    (cut,) = [fit for fit, epochs in trained.items() if epochs == [1]]
    assert len(searched(tmp_path / "s")) < 5, "several trials were cut with it"
    fits = [
        Store(tmp_path / "s").fit(path.parent.name) for path in tmp_path.glob("s/fits/*/fit.json")
    ]
    whole = sum(
        fit.seconds for fit in fits if fit is not None and fit.identity["seed"] == SEARCH_SEED
    )
    (final,) = planned.records()
    assert final.search_seconds == pytest.approx(
        whole + Store(tmp_path / "s").epochs(cut)[0]["seconds"]
    )


@pytest.mark.parametrize(
    ("fields", "stated"),
    [({"search": "tpe"}, "tpe"), ({"trials": 0}, "set trials or hours")],
)
def test_what_it_cannot_go_with(fields: dict[str, object], stated: str) -> None:
    with pytest.raises(UsageError, match=stated):
        sweep_spec({"methods": ("full-finetune",), "asha": True, **fields})


@pytest.mark.slow
def test_a_trial_that_fails_at_a_rung_is_a_row_and_the_others_go_on(
    tiny_suite: Path, sometimes_raises: Path, tmp_path: Path
) -> None:
    planned, listener = (
        plan(tiny_suite, tmp_path / "s", str(sometimes_raises), **{**FIELDS, "trials": 4}),
        Listener(),
    )
    planned.run(listener)
    failed = [job for job, outcome in listener.ends if outcome.status == "failed"]
    assert {(job.phase, job.epoch, job.method["parameters"]["bad"]) for job in failed} == {
        ("rung", 1, True)
    }
    assert [(record.status, record.search_trials) for record in planned.records()] == [("done", 4)]
    rows = [record.error for record in searched(tmp_path / "s") if record.status == "failed"]
    assert rows == ["RuntimeError: a bug of the plug-in"] * len(failed)


@pytest.mark.slow
@pytest.mark.parametrize("asha", [False, True])
def test_a_trial_that_fails_in_one_shard_keeps_no_other_shard_waiting(
    asha: bool, tiny_suite: Path, sometimes_raises: Path, tmp_path: Path
) -> None:
    fields = {**FIELDS, "trials": 6, "asha": asha, "seeds": (0, 1, 2)}
    ended: list[JobResult] = []
    for _ in range(4):  # two rungs, the end and the final runs; or the trials and the final runs
        left = 0
        for number in (1, 2):
            listener = Listener()
            shard = plan(
                tiny_suite, tmp_path / "s", str(sometimes_raises), shard=(number, 2), **fields
            )
            shard.run(listener)
            ended += [outcome for _, outcome in listener.ends]
            left += shard.queue.finals_to_come + shard.queue.elsewhere
    assert left == 0
    assert {outcome.error for outcome in ended} == {"", "RuntimeError: a bug of the plug-in"}
    done = [record for _, record in Store(tmp_path / "s").records() if record.phase == "final"]
    assert sorted((record.seed, record.status) for record in done) == [
        (0, "done"),
        (1, "done"),
        (2, "done"),
    ]
