"""What a sweep is asked for: one text, one table or one file say the same, and mistakes are told
before anything is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.run_spec import RunSpec
from bench.sweeps.sweep_spec import SweepSpec, as_toml, sweep_of, sweep_spec


def spec(*methods: Any, **fields: Any) -> SweepSpec:
    return sweep_spec({"methods": methods, **fields})


def values(one: SweepSpec, number: int = 0) -> dict[str, Any]:
    return one.values(one.contenders[number])


def test_a_file_says_what_options_say(tmp_path: Path) -> None:
    requested = spec(
        "wise-ft:of=lp-ft,alpha=0.3",
        {"name": "full-finetune", "set": {"augment": "a,b"}},
        set={"lr": 1e-4, "epochs": 2},
        hours=1.5,
        resources={"tpu": 1},
        data_root=Path("/data"),
    )
    file = tmp_path / "sweep.toml"
    file.write_text(as_toml(requested))
    assert sweep_spec({}, file) == requested
    assert sweep_spec({"set": {"epochs": 3}, "seeds": (7,)}, file).set == {"lr": 1e-4, "epochs": 3}


def test_a_parameter_reaches_every_method_that_has_it_or_wraps_one() -> None:
    one = spec(
        "full-finetune", "wise-ft", "wise-ft:of=lp-ft,of.epochs=9", "zero-shot", set={"epochs": 2}
    )
    assert [values(one, n) for n in range(4)] == [
        {"epochs": 2},
        {"of.epochs": 2},
        {"of": "lp-ft", "of.epochs": 9},
        {},
    ]


def test_of_is_for_wrappers() -> None:
    one = spec("full-finetune", "wise-ft", of="lp-ft")
    assert [values(one, n) for n in range(2)] == [{}, {"of": "lp-ft"}]


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({"methods": ("full-finetune",), "set": {"lrr": 1}}, "did you mean `lr`?"),
        ({"methods": ("full-finetune",), "of": "lp-ft"}, "full-finetune wraps no other method"),
        ({"methods": ("full-finetune:lr",)}, "KEY=VALUE"),
        ({"methods": ("full-finetune", "full-finetune")}, "given twice"),
        ({"methods": ("full-finetune",), "seeds": (1_000_003,)}, "1000003"),
        ({"methods": ("full-finetune",), "search": "bayes"}, "tpe"),
        ({"methods": ("full-finetune",), "trails": 3}, "trails"),
        ({"methods": ("full-finetune",), "runner": "local", "address": "head:6379"}, "Ray's"),
    ],
)
def test_mistakes_are_reported(fields: dict[str, Any], stated: str) -> None:
    with pytest.raises(UsageError) as shown:
        values(sweep_spec(fields))
    assert stated in str(shown.value)


def test_all_is_every_installed_method() -> None:
    names = [contender.name for contender in spec("all").contenders]
    assert {"full-finetune", "wise-ft", "zero-shot"} <= set(names)


def test_side_by_side_keeps_every_field_of_a_run() -> None:
    """What `bench run` is told about the data reaches its runs with --jobs, too: a field that is
    added must not be lost.
    """
    shown: dict[str, Any] = {
        "suite": "pacs",
        "backbone": "mini-clip",
        "seeds": (4, 5),
        "data_root": Path("/data"),
        "limit": 9,
    }
    run = RunSpec(methods=("wise-ft",), skip_unreadable=2, shots=3, keep_logits=True, **shown)
    where = sweep_of(run, jobs=2).run_spec(run.suite, run.backbone)
    apart = {"of", "set", "curve", "search", "trials"}  # these are the sweep's own
    assert where.model_dump(exclude=apart) == run.model_dump(exclude=apart)
    assert all(
        getattr(run, name) != field.default
        for name, field in RunSpec.model_fields.items()
        if name not in apart
    )
