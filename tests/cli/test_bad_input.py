"""What was not said is not made up: backbones, parameters that a method lacks, suites of which
nothing is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.cli import main
from bench.errors import UsageError
from bench.run_spec import left_out, run_spec
from bench.stopping import Reporter
from bench.sweeps.sweep import run_sweep
from bench.sweeps.sweep_spec import Contender, sweep_spec

from support.messages import states
from support.suites import make_suite


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = 0
    try:
        main(list(arguments))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def without_backbone(tmp_path: Path) -> Path:
    card = make_suite(tmp_path)
    lines = card.read_text().splitlines(keepends=True)
    card.write_text("".join(line for line in lines if not line.startswith("backbone")))
    return card


@pytest.mark.parametrize(
    "verb", [["run", "linear-probe"], ["sweep", "linear-probe", "--runner", "inline"]]
)
def test_a_card_without_a_backbone_is_run_on_the_one_that_is_named(
    verb: list[str], without_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [
        "--suite",
        str(without_backbone),
        "--store",
        str(tmp_path / "s"),
        "--dry-run",
        "--format",
        "json",
    ]
    code, out, err = command(capsys, *verb, *where)
    assert (code, out) == (2, "")
    assert "the suite tiny has no default" in err
    assert "--backbone NAME" in err
    code, out, _ = command(capsys, *verb, *where, "--backbone", "mini-clip")
    assert code == 0
    assert json.loads(out)["tables"]


def test_a_suite_whose_only_shift_is_missing_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = make_suite(tmp_path)
    for shift in ("noisy", "inverted"):
        (tmp_path / "images" / shift).rename(tmp_path / shift)
        code, out, err = command(capsys, "check", str(card))
        message = "no shift has data" in out + err
        assert (code, message) == ((1, True) if shift == "inverted" else (0, False)), out + err


def test_what_one_of_several_methods_lacks_is_left_out_there_and_reported(
    tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--suite", str(tiny_suite), "--store", str(tmp_path), "--dry-run", "--format", "json"]
    code, out, err = command(
        capsys,
        "run",
        "linear-probe",
        "full-finetune",
        "--set",
        "clip=0.5",
        "--set",
        "precision=bf16",
        *where,
    )
    assert code == 0, err
    assert states(err, "`precision`", "linear-probe", "ignored")
    assert "`clip`" not in err
    rows = json.loads(out)["tables"][0]["rows"]
    assert [row["method"] for row in rows] == [
        "linear-probe (clip=0.5)",
        "full-finetune (clip=0.5, precision=bf16)",
    ]


def test_run_and_sweep_place_parameters_by_one_rule() -> None:
    methods, given = (
        ("linear-probe", "wise-ft", "full-finetune"),
        {
            "lr": 1e-4,
            "precision": "bf16",
            "of": "lp-ft",
        },
    )
    run = run_spec({"methods": methods, "set": given})
    sweep = sweep_spec({"methods": methods, "set": given})
    values: dict[str, Any] = {
        "linear-probe": {"lr": 1e-4},
        "wise-ft": {"of": "lp-ft", "of.lr": 1e-4, "of.precision": "bf16"},
        "full-finetune": {"lr": 1e-4, "precision": "bf16"},
    }
    for name in methods:
        assert run.values(name) == sweep.values(Contender(name=name)) == values[name]
    first, second = left_out(methods, run.shared)
    assert states(first, "`precision`", "linear-probe")
    assert states(second, "`of`", "linear-probe", "full-finetune")


@pytest.mark.parametrize(
    ("methods", "given", "message"),
    [
        (["zero-shot"], {"epochs": 3}, "parameter of zero-shot: `epochs`"),
        (["zero-shot", "full-finetune"], {"epoch": 3}, "epochs"),
        (["zero-shot", "linear-probe"], {"of": "lp-ft"}, "wrap no other method"),
        (["linear-probe"], {"of": "lp-ft"}, "linear-probe wraps no other method"),
    ],
)
def test_what_no_method_has_is_refused(
    methods: list[str], given: dict[str, Any], message: str
) -> None:
    of = given.pop("of", None)
    for spec in (run_spec, sweep_spec):
        made: Any = spec({"methods": tuple(methods), "set": given, "of": of})
        with pytest.raises(UsageError) as caught:
            made.values(made.contenders[0] if spec is sweep_spec else methods[0])
        assert message in str(caught.value)


def test_what_no_method_has_is_an_error_and_no_note(
    tiny_suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = command(capsys, "run", "wise-ft", "--set", "lrr=3", "--suite", str(tiny_suite))
    assert code == 2
    assert "unknown parameter of wise-ft: `lrr`" in err
    assert "ignored there" not in err


def test_the_call_says_it_too(tiny_suite: Path, tmp_path: Path) -> None:
    message: list[str] = []

    class Keeps(Reporter):
        def event(self, kind: str, **fields: Any) -> None:
            if kind == "warning":
                message.append(fields["text"])

    run_sweep(
        run_spec(
            {
                "methods": ("linear-probe", "full-finetune"),
                "suite": str(tiny_suite),
                "set": {"precision": "bf16"},
            }
        ),
        store=tmp_path,
        reporter=Keeps(),
    )
    assert len(message) == 1
    assert states(message[0], "`precision`", "linear-probe")
    with pytest.raises(UsageError, match="epochs"):
        bench.run("linear-probe", suite=str(tiny_suite), store=tmp_path, set={"epoch": 1})
