"""LaTeX that compiles, bold where it belongs; reported rows apart; reports that replace only
reports; boards from packs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.cli import build_app
from bench.errors import UsageError
from bench.identity import digest
from bench.leaderboard import reported
from bench.leaderboard.board import ties
from bench.leaderboard.board.tables import View, boards, tables
from bench.leaderboard.commands.reproduce import verdict
from bench.leaderboard.packs.merge import merge
from bench.leaderboard.packs.pack import write_pack
from bench.leaderboard.page import report
from bench.leaderboard.statistics.pairs import these_models
from bench.results.store import Store
from bench.tables.table import Format, render

import boards as regenerate
from .conftest import Make
from support.latex import check_latex
from support.packs import stored_run


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments))


def test_reported_files_hold_together() -> None:
    files = reported.shipped()
    assert {"imagenet-shifts", "mini-shifts"} <= files.keys()
    for file in files.values():
        assert all(row.source in file.sources for row in file.rows)
    mini = {row.name: row for row in files["mini-shifts"].rows}["full-finetune"]
    assert mini.recipe is not None
    assert set(mini.quantities()) == set(mini.recipe.tolerance)  # type: ignore[arg-type]


def test_an_average_over_five_shifts_is_what_its_source_prints() -> None:
    for row in reported.shipped()["imagenet-shifts"].rows:
        if len(row.shifts) == 5 and row.ood is not None:
            assert row.ood == pytest.approx(sum(row.shifts.values()) / 5, abs=0.11), row.name


def test_recipes_of_installed_methods_are_theirs() -> None:
    from bench.configure import build_method

    for file in reported.shipped().values():
        for row in file.rows:
            if row.recipe:
                build_method(row.recipe.method, row.recipe.set)


@pytest.fixture
def own_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of reported rows on the suite of the made-up runs."""
    (tmp_path / "reported").mkdir()
    (tmp_path / "reported" / "pets.toml").write_text(
        'suite = "pets"\nrows = [{ name = "theirs", backbone = "T", method = "wise-ft", id = 80,'
        ' ood = 50, source = "A", certainty = "paper" }]\n[backbones]\n"T" = "tiny"\n[sources]\n"A"'
        ' = "A paper"\n'
    )
    monkeypatch.setattr(reported, "FOLDER", tmp_path / "reported")
    return tmp_path / "reported"


def test_reported_rows_stand_in_a_table_of_their_own_with_the_gap(
    make: Make, store: Store, own_reported: Path
) -> None:
    store.save_run(make(scores={"id-test": 0.82, "cartoon": 0.5, "sketch": 0.44}))
    plain = json.loads(run("leaderboard", "--store", str(store.root), "--format", "json").stdout)
    assert len(plain["tables"]) == 1
    board, theirs = json.loads(
        run("leaderboard", "--store", str(store.root), "--reported", "--format", "json").stdout
    )["tables"]
    assert board == plain["tables"][0]
    assert "reported, not measured" in theirs["title"]
    (row,) = theirs["rows"]
    assert (row["gap_id"], row["gap_ood"]) == (pytest.approx(0.02), pytest.approx(-0.03))
    assert "A: A paper." in theirs["notes"]
    sampled = reported.reported_points(
        boards([record for _, record in store.records()], View()).boards[0]
    )
    assert (
        sampled.to_dict("records")[0] | {"kind": "reported", "ood": 0.5, "id": 0.8}
        == sampled.to_dict("records")[0]
    )


def test_a_wrong_reported_file_is_reported(own_reported: Path) -> None:
    path = own_reported / "pets.toml"
    path.write_text(path.read_text().replace('source = "A"', 'source = "B"'))
    with pytest.raises(UsageError, match="unknown source B"):
        reported.shipped()


def test_a_verdict_is_about_every_reported_number(make: Make) -> None:
    recipe = reported.Repeat(method="wise-ft", seeds=(0, 1), tolerance={"id": 1.0, "ood": 0.5})
    row = reported.Reported(
        name="r",
        backbone="T",
        method="wise-ft",
        id=90.0,
        shifts={"cartoon": 60.0, "lost": 1.0},
        ood=54.0,
        source="A",
        certainty="paper",
        recipe=recipe,
    )
    records = [
        make(seed=seed, ood=0.55, scores={"id-test": 0.9 + seed / 100, "cartoon": 0.6})
        for seed in (0, 1)
    ]
    found = {line["number"]: line for line in verdict(row, records).rows}
    assert found["id"]["gap"] == pytest.approx(0.5)
    assert {key: line["verdict"] for key, line in found.items()} == {
        "id": "within",
        "cartoon": "no tolerance stated",
        "lost": "not measured",
        "ood": "outside",
    }


@pytest.mark.slow
def test_reproduce_runs_the_recipe_and_says_within_or_outside(
    tiny_suite: Path, tmp_path: Path
) -> None:
    file, store = tmp_path / "mine.toml", str(tmp_path / "store")

    def write(stated: float) -> None:
        recipe = '{ method = "linear-probe", seeds = [0], tolerance = 5 }'
        file.write_text(
            f"suite = '{tiny_suite}'\nrows = [{{ name = 'probe', backbone = 'T', method ="
            f" 'linear-probe', id = {stated}, source = 'A', certainty = 'paper', recipe = {recipe}"
            " }]\n[backbones]\nT = 'timm:test_vit@random?size=32'\n[sources]\nA = 'A paper'\n"
        )

    write(0.0)
    options = (
        "reproduce",
        "mine/probe",
        "--from",
        str(file),
        "--store",
        store,
        "--threads",
        "1",
        "--format",
        "json",
    )
    planned = run(*options, "--dry-run")
    (row,) = json.loads(planned.stdout)["tables"][0]["rows"]
    assert (row["seed"], row["state"], row["why"]) == (0, "to train", "")
    outside = run(*options)
    assert outside.exit_code == 1
    (line,) = json.loads(outside.stdout)["tables"][0]["rows"]
    assert line["verdict"] == "outside"
    write(line["measured"])
    again = run(*options)
    assert again.exit_code == 0
    assert json.loads(again.stdout)["tables"][0]["rows"][0]["verdict"] == "within"
    # What the engine writes states its own identity, and adds up.
    ((_, record),) = Store(Path(store)).records()
    assert digest(record.identity["fit"])[:24] == record.fit_id
    assert digest({"fit": record.fit_id, **record.identity["evaluation"]})[:24] == record.eval_id
    write_pack(Store(Path(store)), [record], tmp_path / "real.shiftpack")
    (merged,) = merge([tmp_path / "real.shiftpack"], Store(tmp_path / "theirs"))
    assert [found.eval_id for found in merged.runs["new"]] == [record.eval_id]
    # What came in a pack reproduces nothing: it is made here, beside it, and held against it.
    elsewhere = (*options[:4], "--store", str(tmp_path / "theirs"), *options[6:])
    (row,) = json.loads(run(*elsewhere, "--dry-run").stdout)["tables"][0]["rows"]
    assert row["state"] == "to train"
    assert "real.shiftpack" in row["why"]
    made = run(*elsewhere)
    assert made.exit_code == 0
    verdict, twice = json.loads(made.stdout)["tables"]
    assert verdict["rows"][0]["verdict"] == "within"
    assert {
        (row["made"], row["other_made"], row["difference"], row["differ"]) for row in twice["rows"]
    } == {("here", "real.shiftpack", 0.0, 0)}
    assert [row["split"] for row in twice["rows"]] == list(record.metrics)
    assert (
        json.loads(run(*elsewhere, "--dry-run").stdout)["tables"][0]["rows"][0]["state"] == "done"
    )


def test_reproduce_tells_what_it_does_not_know() -> None:
    assert "did you mean `mini-shifts/full-finetune`" in str(
        run("reproduce", "mini-shifts/full-finetun").exception
    )
    assert "imagenet-shifts/b16-vrf has no recipe" in str(
        run("reproduce", "imagenet-shifts/b16-vrf").exception
    )
    assert "mini-shifts/full-finetune" in run("reproduce").stdout


@pytest.fixture
def results(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for method in ("full-finetune", "wise-ft"):
        for seed in (0, 1):
            stored_run(store, method, seed)
    return store


@pytest.mark.slow
def test_a_report_replaces_a_report_and_nothing_else(results: Store, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    for _ in range(2):
        assert run("report", "-o", str(folder), "--store", str(results.root)).exit_code == 0
    text = (folder / "report.md").read_text()
    for part in (
        "The backbone is tiny",
        "id-val, 60 images",
        "means over 2 seeds (0, 1)",
        "| full-finetune |",
        "no curve",
    ):
        assert part in text
    photos = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(photos) == 3
    assert all((folder / photo).is_file() for photo in photos)
    assert "grey line" not in text, "no curve is drawn"
    check_latex((folder / "pets_tiny" / "board.tex").read_text())
    assert "wortsman2022" in (folder / "references.bib").read_text()
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("dear")
    refused = run("report", "-o", str(foreign), "--store", str(results.root))
    assert isinstance(refused.exception, UsageError)
    assert [path.name for path in foreign.iterdir()] == ["chapter.tex"]


def test_a_report_compares_pairs_once_and_tells_of_the_line_that_it_draws(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [stored_run(store, "full-finetune", curve=True), stored_run(store, "wise-ft")]
    compared = []
    monkeypatch.setattr(
        ties, "these_models", lambda strata: compared.append(len(strata)) or these_models(strata)
    )
    monkeypatch.setattr(report, "save", lambda *drawing: None)  # seconds of rendering
    report.write_report(runs, store, tmp_path / "report")
    assert len(compared) == 1
    assert "above the grey line" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow
def test_the_board_is_what_its_packs_give(
    results: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regenerate, "DEFAULT_SUITE", "pets")
    monkeypatch.setattr(regenerate, "DEFAULT_BACKBONE", "tiny")
    folder = tmp_path / "boards"
    regenerate.repack(results, folder, "pets")
    regenerate.regenerate(folder)
    assert regenerate.differences(folder) == []
    made = {path.name for path in folder.iterdir()}
    assert made == {"pets.shiftpack", "board.md", "board.json", "page.html", "report"}
    before = {
        name: (folder / name).read_bytes() for name in made if name.startswith(("pets", "board"))
    }
    regenerate.repack(results, folder, "pets")
    regenerate.regenerate(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    stated = json.loads((folder / "board.json").read_text())
    stated["tables"][0]["rows"][0]["ood"] += 0.01
    (folder / "board.json").write_text(json.dumps(stated))
    (difference,) = regenerate.differences(folder)
    assert difference.startswith("board.json.tables[0].rows[0].ood")


@pytest.mark.parametrize(
    ("store", "check"), [(None, False), (None, True), (Path("some-store"), True)]
)
def test_a_suite_is_of_a_store_that_is_packed(
    store: Path | None, check: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        regenerate.main(store, tmp_path, ["pets"], check)
    assert ended.value.code == 2
    assert "--store" in capsys.readouterr().err


@pytest.mark.slow
def test_the_board_of_this_repository_adds_up_from_its_packs() -> None:
    folder = Path(__file__).parents[2] / "leaderboard" / "boards"
    if not folder.is_dir():
        pytest.skip("this checkout carries no board: `make board` makes it")
    assert regenerate.differences(folder) == []


def test_pack_and_merge_as_they_are_typed(results: Store, tmp_path: Path) -> None:
    pack, theirs = str(tmp_path / "all.shiftpack"), str(tmp_path / "theirs")
    assert run("pack", "-o", pack, "--store", str(results.root), "--without-logits").exit_code == 0
    assert isinstance(run("pack", "-o", pack, "--store", str(results.root)).exception, UsageError)
    dry = run("merge", pack, "--store", theirs, "--dry-run", "--format", "json")
    assert not Path(theirs).exists()
    done = run("merge", pack, "--store", theirs, "--format", "json")
    for found in (dry, done):
        assert json.loads(found.stdout)["tables"][0]["rows"] == [
            {"pack": pack, "runs": 4, "what": "new"}
        ]
    missing = run("merge", str(tmp_path / "none"), "--store", theirs)
    assert missing.exception.exit_code == 3  # type: ignore[union-attr]


def test_plot_as_it_is_typed(results: Store, tmp_path: Path) -> None:
    store = ("--store", str(results.root))
    assert run("plot", "scatter", "-o", str(tmp_path / "s.svg"), *store, "--logit").exit_code == 0
    assert "full-finetune" in (tmp_path / "s.svg").read_text()
    nothing = run("plot", "curve", "-o", str(tmp_path / "c.svg"), *store)
    assert nothing.exception.exit_code == 5  # type: ignore[union-attr]
    for wrong in (
        ("radar", "-o", "x.gif"),
        ("radar", "-o", "x.svg", "--split", "none"),
        ("scatter", "-o", "x.svg", "--y", "no"),
    ):
        assert run("plot", *wrong, *store).exception.exit_code == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("what", "option"),
    [
        ("scatter", "--split=art"),
        ("scatter", "--scaled"),
        ("curve", "--y=art"),
        ("radar", "--logit"),
        ("reliability", "--reported"),
    ],
)
def test_a_chart_refuses_what_it_would_not_heed(
    results: Store, tmp_path: Path, what: str, option: str
) -> None:
    shown = run("plot", what, option, "-o", str(tmp_path / "x.svg"), "--store", str(results.root))
    assert isinstance(shown.exception, UsageError)
    assert "takes --" in shown.exception.fix


def test_id_stands_not_against_itself(results: Store, tmp_path: Path) -> None:
    shown = run(
        "plot", "scatter", "--y", "id", "-o", str(tmp_path / "x.svg"), "--store", str(results.root)
    )
    assert isinstance(shown.exception, UsageError)


def test_the_protocol_claims_no_more_than_is_on_record(make: Make) -> None:
    scores = {"id-val": 0.9, "id-test": 0.9, "cartoon": 0.6, "sketch": 0.5}
    lacking = make("z", scores={"id-val": 0.9, "cartoon": 0.7, "sketch": 0.7})
    (board,) = boards(
        [make("a", scores=scores, search_trials=2), make("b", scores=scores), lacking], View()
    ).boards
    text = report.protocol(board)
    assert "ID is accuracy on id-test (100 images)." in text
    assert "0 to 2 trials per row" in text
    assert "whose choice is not on record" in text
    assert "looked at" not in text


def test_a_caption_says_what_its_ties_are_about(make: Make) -> None:
    records = [
        make(name, seed, {"id-test": 0.9, "cartoon": 0.5 + seed / 50, "sketch": 0.5})
        for name in "ab"
        for seed in range(3)
    ]
    assert "not shown to be below the best, as methods over seeds." in render(
        tables(records, View(ties="method")), Format.latex
    )
