"""A sweep as a user meets it: equal budgets, no look at a shift, every fit once, no trial that
waits, resumed by repeating it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.errors import Interrupted, MissingPrerequisite, UsageError
from bench.results.store import Store
from bench.run_spec import SEARCH_SEED
from bench.sweeps.estimate import Costs, ahead, estimate
from bench.sweeps.job import JobResult
from bench.sweeps.sweep import Sweep

from support.tiny_sweeps import METHODS, Listener, plan, sweep

RAISES = """
from bench import FineTuner
class Raises(FineTuner):
    name = "raises"
    def loss(self, batch, student, teacher, constants):
        raise RuntimeError("a bug of the plug-in")
"""


def test_every_method_gets_the_same_budget_and_every_seed(tiny_suite: Path, finished: Path) -> None:
    records = [record for _, record in Store(finished).records()]
    finals = [record for record in records if record.phase == "final"]
    assert Counter(record.method["name"] for record in finals) == dict.fromkeys(METHODS, 2)
    budgets = {record.method["name"]: record.search_trials for record in finals}
    assert budgets == {
        "full-finetune": 2,
        "wise-ft": 2,
        "lp-ft": 2,
        "linear-probe": 1,
    }, "the probe has nothing to search for"
    assert all(record.search_seconds is not None and record.search_seconds > 0 for record in finals)
    assert {record.seed for record in finals} == {0, 1}
    assert {record.seed for record in records if record.phase == "search"} == {SEARCH_SEED}


def test_what_a_nested_fit_chose_on_id_val_is_reported_too(finished: Path) -> None:
    finals = [
        record
        for _, record in Store(finished).records()
        if record.phase == "final" and record.seed == 0
    ]
    among = {
        str(one.method["name"]): {name: chosen["among"] for name, chosen in one.selection.items()}
        for one in finals
    }
    probe = {"linear-probe.C": 5}
    assert among == {
        "linear-probe": {"C": 5},
        "full-finetune": {},
        "lp-ft": probe,
        "wise-ft": probe,
    }


def test_the_best_trial_on_id_val_is_what_runs(finished: Path) -> None:
    records = [record for _, record in Store(finished).records()]
    for name in METHODS:
        mine = [record for record in records if record.method["name"] == name]
        trials = [record for record in mine if record.phase == "search"]
        best = max(record.metrics["id-val"].score for record in trials)
        (chosen,) = {json.dumps(record.method) for record in mine if record.phase == "final"}
        assert best in [
            record.metrics["id-val"].score
            for record in trials
            if json.dumps(record.method) == chosen
        ]


def test_the_search_cannot_see_a_shift(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.runs import measure

    measured = measure._logits

    def guarded(experiment: Any, classifiers: Any, split: Any) -> Any:
        if split.name != "id-val":
            raise AssertionError(f"{split.name} was looked at")
        return measured(experiment, classifiers, split)

    # Whatever is measured goes through here: a search that looked at anything but id-val would
    # fail, as the final runs do.
    monkeypatch.setattr(measure, "_logits", guarded)
    records, listener = sweep(
        tiny_suite, tmp_path, "full-finetune", "wise-ft", "linear-probe", trials=2, curve="none"
    )
    searched = [outcome.status for job, outcome in listener.ends if job.phase == "search"]
    assert searched == ["done"] * 5
    assert [record.error for record in records] == ["AssertionError: id-test was looked at"] * 6


@pytest.mark.slow
def test_every_fit_is_trained_once_and_none_is_waited_for(tiny_suite: Path, tmp_path: Path) -> None:
    class Checks(Listener):
        def event(self, kind: str, **fields: Any) -> None:
            super().event(kind, **fields)
            if kind == "started":
                missing = [
                    fit_id for fit_id in fields["job"].needs if Store(tmp_path).fit(fit_id) is None
                ]
                assert not missing, f"{fields['job'].label} starts before what it is built on"

    # Two wrappers of one fine-tuner that starts from the probe, which is a contender as well.
    planned, checks = (
        plan(
            tiny_suite,
            tmp_path,
            "wise-ft:of=lp-ft",
            "wise-ft:of=lp-ft,alpha=0.2",
            "linear-probe",
            trials=2,
        ),
        Checks(),
    )
    planned.run(checks)
    assert all(outcome.status == "done" for _, outcome in checks.ends)
    assert max(Counter(checks.trained()).values()) == 1
    assert not [kind for _, kind, _ in checks.events if kind == "waiting"]
    own = Counter(
        job.fit_id
        for job, kind, fields in checks.events
        if kind == "fit" and fields["fit_id"] == job.fit_id
    )
    assert sum(own.values()) == len(checks.trained()), "every job trains its own fit alone"


def test_the_same_sweep_again_does_nothing(tiny_suite: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*.json")}
    planned, listener = plan(tiny_suite, finished, *METHODS, trials=2), Listener()
    assert planned.queue.over
    planned.run(listener)
    assert listener.starts == []
    assert {path: path.read_bytes() for path in finished.rglob("*.json")} == before


@pytest.mark.slow
def test_a_stop_saves_and_the_same_sweep_continues_it(
    tiny_suite: Path, tmp_path: Path, finished: Path
) -> None:
    for moment in (("step", 3), ("started", 8)):
        planned, listener = plan(tiny_suite, tmp_path, *METHODS, trials=2), Listener(stop_at=moment)
        with pytest.raises(Interrupted):
            planned.run(listener)
    records, _ = sweep(tiny_suite, tmp_path, *METHODS, trials=2)
    undisturbed = {record.eval_id: record for _, record in Store(finished).records()}
    assert len(records) == 8
    for record in records:
        assert record.metrics == undisturbed[record.eval_id].metrics


def test_a_fit_that_is_there_needs_nothing_below_it(tiny_suite: Path, tmp_path: Path) -> None:
    (record,), _ = sweep(tiny_suite, tmp_path, "wise-ft", trials=0, seeds=(0,))
    shutil.rmtree(tmp_path / "runs")
    for fit in (tmp_path / "fits").iterdir():
        if fit.name != record.fit_id:
            shutil.rmtree(fit)
    (again,), listener = sweep(tiny_suite, tmp_path, "wise-ft", trials=0, seeds=(0,))
    assert listener.trained() == []
    assert again.metrics == record.metrics


def test_the_baseline_gets_its_curve(finished: Path) -> None:
    curves = {
        record.method["name"]: len(record.curve)
        for _, record in Store(finished).records()
        if record.phase == "final"
    }
    assert curves == {"full-finetune": 11, "wise-ft": 0, "lp-ft": 0, "linear-probe": 0}


def test_but_not_where_batch_statistics_were_trained(tiny_suite: Path, tmp_path: Path) -> None:
    planned = plan(
        tiny_suite, tmp_path, "full-finetune:norm=train", "full-finetune", trials=0, seeds=(0,)
    )
    assert [entry.job.curve for entry in planned.queue if entry.job.is_run] == [False, True]


def test_failed_is_a_row_and_the_rest_goes_on(tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    bad = str(tmp_path / "raises.py")
    records, listener = sweep(
        tiny_suite, tmp_path / "s", bad, f"wise-ft:of={bad}", "linear-probe", trials=0, seeds=(0,)
    )
    assert [record.status for record in records] == ["failed", "failed", "done"]
    assert "a bug of the plug-in" in records[0].error
    assert "which it depends on, failed" in records[1].error
    assert "a bug of the plug-in" in records[1].error
    assert sum(outcome.status == "failed" for _, outcome in listener.ends) == 2, (
        "the run, and the end that wise-ft starts elsewhere"
    )


def test_a_search_whose_trials_all_fail_is_a_row_per_seed(tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    records, _ = sweep(
        tiny_suite, tmp_path / "s", str(tmp_path / "raises.py"), "linear-probe", trials=2
    )
    assert [(record.label, record.status) for record in records[:2]] == [
        ("raises", "failed"),
        ("linear-probe", "done"),
    ]
    assert "all 2 trials failed" in records[0].error


@pytest.mark.slow
def test_a_budget_in_hours_ends_when_it_is_spent(tiny_suite: Path, tmp_path: Path) -> None:
    methods = ("full-finetune", "linear-probe")
    records, _ = sweep(tiny_suite, tmp_path, *methods, hours=1e-9, seeds=(0,))
    assert [record.search_trials for record in records] == [1, 1], "the first trial spends it"
    first = records[0].search_seconds
    assert first is not None
    again, _ = sweep(tiny_suite, tmp_path, *methods, hours=1.001 * first / 3600, seeds=(0,))
    assert [record.search_trials for record in again] == [
        2,
        1,
    ], "the probe has no parameters to spend it on"
    assert again[0].search_seconds is not None
    assert again[0].search_seconds > 1.001 * first


@pytest.mark.slow
def test_shards_share_the_work(tiny_suite: Path, tmp_path: Path) -> None:
    def part(number: int) -> Sweep:
        return plan(tiny_suite, tmp_path, "lp-ft", "linear-probe", trials=2, shard=(number, 2))

    first, second = Listener(), Listener()
    part(1).run(first)
    part(2).run(second)
    part(1).run(first)  # its part of what the other's search chose
    mine, theirs = (
        {job.id for job in listener.starts if job.phase != "stage"} for listener in (first, second)
    )
    assert mine
    assert theirs
    assert not mine & theirs
    whole = plan(tiny_suite, tmp_path, "lp-ft", "linear-probe", trials=2)
    assert not whole.queue.unfinished
    assert len(whole.records()) == 4


def test_the_journal_tells_other_tools(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "sweep.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "planned"
    started = Counter(line["job"] for line in lines if line["event"] == "started")
    settled = Counter(
        line["job"] for line in lines if line["event"] == "settled" and line["status"] == "done"
    )
    assert started == settled
    assert set(started.values()) == {1}


def test_the_journal_ends_also_where_nothing_can_start(tiny_suite: Path, tmp_path: Path) -> None:
    planned = plan(
        tiny_suite, tmp_path, "linear-probe", trials=0, runner="ray", address="127.0.0.1:1"
    )
    with pytest.raises(MissingPrerequisite, match="no Ray cluster answers"):
        planned.run(Listener())
    lines = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["planned", "ended"]


def test_a_method_that_fits_one_backbone_is_left_out_on_the_other(
    tiny_suite: Path, tmp_path: Path
) -> None:
    backbones = ("mini-clip", "timm:test_vit@random?size=32")
    planned = plan(
        tiny_suite, tmp_path, "zero-shot", "linear-probe", backbones=backbones, trials=0, seeds=(0,)
    )
    assert [(one.requested, one.backbone) for one in planned.plan.impossible] == [
        ("zero-shot", backbones[1])
    ]
    assert len(planned.queue.jobs) == 3
    with pytest.raises(UsageError, match="text tower"):
        plan(tiny_suite, tmp_path, "zero-shot", trials=0)


def test_a_full_disk_is_reported_and_corrupts_nothing(tiny_suite: Path, tmp_path: Path) -> None:
    import resource

    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Less than the weights of a classifier.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, usual[1]))
    try:
        records, _ = sweep(
            tiny_suite, tmp_path, "full-finetune", "linear-probe", trials=0, seeds=(0,)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [record.status for record in records] == ["failed", "failed"]
    assert "cannot write a file" in records[0].error
    assert not list(tmp_path.rglob("*.part"))
    assert [
        record.status
        for record in sweep(
            tiny_suite, tmp_path, "full-finetune", "linear-probe", trials=0, seeds=(0,)
        )[0]
    ] == [
        "done",
        "done",
    ]


@pytest.mark.parametrize("runner", ["ray", "local"])
def test_a_store_that_cannot_be_written_is_refused_before_anything_starts(
    runner: str, tiny_suite: Path
) -> None:
    planned, listener = (
        plan(tiny_suite, Path("/proc/nowhere"), "linear-probe", trials=0, runner=runner),
        Listener(),
    )
    with pytest.raises(MissingPrerequisite, match="the store cannot be written"):
        planned.run(listener)
    assert listener.starts == listener.notes == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_is_no_store(below: str, tiny_suite: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        plan(tiny_suite, tmp_path / "file" / below, "linear-probe", trials=0)


def test_from_python(tiny_suite: Path, finished: Path) -> None:
    records = bench.sweep(
        *METHODS, suites=[str(tiny_suite)], seeds=[0, 1], trials=2, runner="inline", store=finished
    )
    assert [(record.seed, record.status) for record in records] == [
        (seed, "done") for seed in (0, 1) for _ in METHODS
    ]


def test_as_jobs_end_the_files_of_the_others_are_left_alone(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    epochs = Store.epochs

    def counted(store: Store, fit_id: str) -> list[dict[str, Any]]:
        read[fit_id] += 1
        return epochs(store, fit_id)

    monkeypatch.setattr(Store, "epochs", counted)
    _, listener = sweep(
        tiny_suite, tmp_path, "linear-probe", trials=0, seeds=range(3), curve="none"
    )
    assert [outcome.status for _, outcome in listener.ends] == ["done"] * 3
    assert read == dict.fromkeys(read, 1), "for the first estimate"


def test_an_estimate_counts_every_trial_of_which_nothing_tells(
    tiny_suite: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    queue = plan(
        tiny_suite, tmp_path, "full-finetune", trials=5, search="tpe", seeds=(0, 1, 2)
    ).queue
    found = estimate(queue, Costs(Store(tmp_path)))
    assert (len(found.seconds), found.unknown) == (1, 5 + 3)


def test_an_estimate_counts_what_nothing_tells_of_in_part_and_the_fits_below(
    tiny_suite: Path, tmp_path: Path
) -> None:
    """Where no fit was measured the evaluation is unknown; wise-ft's final run needs a fine-tuning
    and a probe of its seed.
    """
    sweep(tiny_suite, tmp_path, "wise-ft", trials=1, seeds=(0,))
    for record in tmp_path.glob("runs/**/record.json"):
        record.unlink()
    took: dict[str, list[float]] = {}
    for path in tmp_path.glob("fits/*"):
        fit = Store(tmp_path).fit(path.name)
        assert fit is not None
        took.setdefault(fit.identity["method"]["name"], []).append(fit.seconds)
    assert took.keys() == {"wise-ft", "full-finetune", "linear-probe"}
    queue = plan(tiny_suite, tmp_path, "wise-ft", trials=1, seeds=(7,)).queue
    found = ahead(queue, queue.costs)
    assert (list(found.seconds.values()), found.partly, found.unknown) == (
        [0.0],
        2,
        2,
    ), "the trial, and the final run to come"
    assert found.total == pytest.approx(
        sum(sum(seconds) / len(seconds) for seconds in took.values())
    )


def test_a_running_fit_stands_in_for_its_kind_until_one_is_finished(
    tiny_suite: Path, tmp_path: Path
) -> None:
    queue = plan(tiny_suite, tmp_path, "full-finetune", trials=0, seeds=(0, 1), curve="none").queue
    assert (queue.ahead().total, queue.ahead().unknown) == (0.0, 2)
    first = queue.take()
    assert first is not None
    assert [queue.observe(first, seconds) for seconds in (30.0, 40.0)] == [True, False]
    assert (queue.ahead().total, queue.ahead().unknown) == (40.0, 1), "its evaluation is unknown"
    sweep(tiny_suite, tmp_path, "full-finetune", trials=0, seeds=(0,), curve="none")
    queue.settle(first.id, JobResult("done"))
    assert 0 < queue.ahead().total < 40.0
    assert queue.ahead().unknown == 0


def test_what_a_killed_driver_left_goes_also_where_nothing_is_left_to_do(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(tiny_suite, tmp_path / "s", "linear-probe", trials=0, seeds=(0,))
    place = tmp_path / "tmp"
    (place / "0a1b2c3d/session").mkdir(parents=True)
    (place / "0a1b2c3d.lock").touch()
    monkeypatch.setattr("bench.sweeps.ray.session._place", lambda: place)
    done = plan(tiny_suite, tmp_path / "s", "linear-probe", trials=0, seeds=(0,), runner="ray")
    assert done.queue.over
    done.run(Listener())
    assert list(place.iterdir()) == []
