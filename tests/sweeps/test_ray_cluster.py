"""A sweep on a simulated cluster of two nodes with two (logical) GPUs each, with jobs that train
nothing.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError, MissingPrerequisite, UsageError
from bench.run_spec import Settings
from bench.stopping import Reporter
from bench.sweeps.job import Resources
from bench.sweeps.ray.runner import RayRunner
from bench.sweeps.sweep import Sweep
from bench.sweeps.sweep_spec import sweep_spec

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from support import pretend_runner as pretend  # noqa: E402

# Workers cannot import a file of the tests, so its classes travel by value.
ray.cloudpickle.register_pickle_by_value(pretend)
pytestmark = [pytest.mark.ray, pytest.mark.waits]
NODE = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes with two CPUs and two logical GPUs each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args=dict(NODE))
    cluster.add_node(**NODE, labels={"zone": "far"})
    yield cluster
    cluster.shutdown()


def sweep(
    cluster: Any,
    store: Path,
    jobs: list[Any],
    shown: Any = None,
    work: Any = None,
    **resources: Any,
) -> tuple[Any, Any]:
    """Run jobs on the cluster; the queue and the watch afterwards."""
    store.mkdir(exist_ok=True)
    queue, watch = pretend.Line(jobs), shown or pretend.Reports()
    wanted = Resources(**{"gpus": 1.0, "cpus": 0.5, "address": cluster.address, **resources})
    RayRunner(wanted, log=store / "ray.log").run(queue, work or pretend.Pretend(store), watch)
    return queue, watch


@pytest.fixture(autouse=True)
def _without_preflight(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """It imports torch on every node; one test below has it."""
    if "preflight" not in request.node.name:
        monkeypatch.setattr("bench.sweeps.ray.preflight.preflight", lambda *_: None)


def places(store: Path) -> Counter[tuple[str, str]]:
    """How many attempts ran on each (node, visible devices)."""
    seen = [json.loads(path.read_text(encoding="utf-8")) for path in store.glob("*.json")]
    return Counter((one["node"], one["devices"]) for one in seen)


def test_four_trials_run_at_once_each_with_a_gpu_of_its_own(cluster: Any, tmp_path: Path) -> None:
    jobs = [pretend.job(f"job{i}", together=4) for i in range(4)]
    queue, shown = sweep(cluster, tmp_path, jobs)
    assert set(queue.state.values()) == {"done"}
    assert set(places(tmp_path).values()) == {1}
    assert {devices for _, devices in places(tmp_path)} == {"0", "1"}
    assert len(shown.of("epoch")) == 4
    assert not (tmp_path / "ray").exists()


def test_a_failure_and_a_killed_process_do_not_stop_the_rest_on_the_nodes_with_a_label(
    cluster: Any, tmp_path: Path
) -> None:
    jobs = [
        pretend.job("bad", fail="on purpose"),
        pretend.job("odd", bug="ours"),
        pretend.job("dies", die=True),
        pretend.job("ok"),
    ]
    queue, shown = sweep(cluster, tmp_path, jobs, labels=(("zone", "far"),))
    assert len({node for node, _ in places(tmp_path)}) == 1
    assert queue.state == {"bad": "failed", "odd": "failed", "dies": "done", "ok": "done"}
    assert queue.lost == ["dies"]
    errors = {name: outcome.error for name, outcome in shown.of("settled") if outcome.error}
    assert errors.pop("dies").startswith(
        "its process or its machine died: The actor died unexpectedly"
    )
    assert errors == {"bad": "on purpose", "odd": "RuntimeError: ours"}


def test_halves_share_a_gpu_and_a_stop_lets_them_save_their_state(
    cluster: Any, tmp_path: Path
) -> None:
    def when(shown: Any) -> None:
        if len(shown.of("started")) == 5:
            shown.stop = signal.SIGINT

    jobs = [pretend.job(f"job{i}", until="never") for i in range(6)]
    queue, shown = sweep(
        cluster, tmp_path, jobs, pretend.Reports(when), gpus=0.5, cpus=0.25, most=5
    )
    assert max(places(tmp_path).values()) == 2  # five at once on four GPUs
    assert sorted(queue.state.values()) == [*["cancelled"] * 5, "to do"]
    assert [outcome.status for _, outcome in shown.of("settled")] == ["cancelled"] * 5


def test_a_trial_that_hangs_is_ended_and_a_second_stop_waits_for_none(
    cluster: Any, tmp_path: Path
) -> None:
    jobs = [pretend.job("ok"), pretend.job("hangs", hang=True)]
    work = pretend.Pretend(tmp_path, timeout=0.5, grace=0.5)
    queue, _ = sweep(
        cluster,
        tmp_path,
        jobs,
        pretend.Reports(pretend.impatient_after("ok", tmp_path)),
        work=work,
        most=1,
    )
    assert queue.state == {"hangs": "failed", "ok": "done"}
    assert "pretend_runner.py" in (tmp_path / "ray.log").read_text(encoding="utf-8"), (
        "where it hung"
    )

    def when(shown: Any) -> None:
        if shown.of("epoch"):
            shown.stop, shown.now = signal.SIGINT, True

    work = pretend.Pretend(tmp_path, grace=1e6)
    queue, _ = sweep(
        cluster, tmp_path, [pretend.job("again", hang=True)], pretend.Reports(when), work=work
    )
    assert queue.state == {"again": "cancelled"}


def test_what_no_node_offers_is_reported_at_once(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no node is large enough for a trial of 0\.5 CPU, 3 GPU"):
        sweep(cluster, tmp_path, [pretend.job("job")], gpus=3.0)
    with pytest.raises(BenchError, match="no node has the label zone=near"):
        sweep(cluster, tmp_path, [pretend.job("job")], labels=(("zone", "near"),))
    with pytest.raises(BenchError, match="1 licence"):
        sweep(cluster, tmp_path, [pretend.job("job")], custom=(("licence", 1.0),))


def test_the_preflight_names_the_nodes_with_another_version(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.results.provenance.versions", lambda: {"shiftbench": "9.9"})
    queue = pretend.Line([pretend.job("job")])
    with pytest.raises(MissingPrerequisite, match="2 of 2 nodes") as wrong:
        RayRunner(Resources(address=cluster.address), log=tmp_path / "ray.log").run(
            queue, pretend.Pretend(tmp_path), pretend.Reports()
        )
    assert "shiftbench is 0.1.0, but 9.9 on the driver" in wrong.value.where
    assert queue.state == {"job": "to do"}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:10001"])
def test_an_address_without_a_cluster_is_refused_quickly(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError if address[0] != "1" else MissingPrerequisite):
        RayRunner(Resources(address=address), log=tmp_path / "ray.log").run(
            pretend.Line([]), pretend.Pretend(tmp_path), pretend.Reports()
        )


def test_two_gpus_of_a_node_train_one_model_to_the_same_result(
    cluster: Any, tiny_suite: Path, tmp_path: Path
) -> None:
    def trained(name: str, **fields: Any) -> tuple[str, int, dict[str, float]]:
        """Where the trial ran, on how many devices, and its scores."""
        spec = sweep_spec(
            {
                "methods": ("full-finetune",),
                "suites": (str(tiny_suite),),
                "seeds": (0,),
                "trials": 0,
                **fields,
            }
        )
        whole = Sweep(
            spec,
            store=tmp_path / name,
            settings=Settings(device="cpu", threads=1),
            reporter=Reporter(),
        )
        shown = pretend.Reports()
        whole.run(shown)
        ((_, where),) = shown.of("started")
        (record,) = whole.records()
        assert record.status == "done", record.error
        fit = whole.store.fit(record.fit_id)
        assert fit is not None
        return (
            where,
            fit.provenance["devices"],
            {split: metrics.nll for split, metrics in record.metrics.items()},
        )

    # The GPUs are logical: Ray gives both to the trial, which trains on two CPU processes.
    where, devices, scores = trained("two", runner="ray", address=cluster.address, gpus_per_trial=2)
    assert where.endswith("GPU 0,1")
    _, alone, expected = trained("one", runner="inline")
    assert (devices, alone) == (2, 1)
    assert scores == pytest.approx(expected, rel=1e-4)


def test_a_lost_node_loses_no_job(cluster: Any, tmp_path: Path) -> None:
    def when(shown: Any) -> None:
        if len(shown.of("started")) == 4 and len(cluster.worker_nodes) == 1:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            (tmp_path / "go").touch()

    jobs = [pretend.job(f"job{i}", until="go" if i < 4 else "job0.done") for i in range(6)]
    # The jobs of the first four that the lost node had wait for nothing more when they start again.
    queue, _ = sweep(cluster, tmp_path, jobs, pretend.Reports(when))
    assert set(queue.state.values()) == {"done"}
    assert len(list(tmp_path.glob("*.done"))) == 6  # each created exclusively: none was done twice
    cluster.add_node(**NODE, labels={"zone": "far"})  # for the tests that come after this one
