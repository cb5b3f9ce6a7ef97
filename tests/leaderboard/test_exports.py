"""LaTeX that compiles, bold where it belongs; reported rows apart; reports that replace only
reports; boards from packs.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.cli import build_app
from bench.configure import method_names
from bench.errors import UsageError
from bench.identity import digest
from bench.leaderboard import reported
from bench.leaderboard.board import ties
from bench.leaderboard.board.printed import bibtex
from bench.leaderboard.board.tables import View, boards, tables
from bench.leaderboard.commands.reproduce import verdict
from bench.leaderboard.packs.merge import merge
from bench.leaderboard.packs.pack import write_pack
from bench.leaderboard.page import report
from bench.leaderboard.statistics.pairs import these_models
from bench.results.store import Store
from bench.tables.table import Column, Format, Table, render

import boards as regenerate
from .conftest import Make
from .packs import stored_run


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments))


def check_latex(text: str) -> None:
    """What a compiler would trip over: unbalanced braces, rows of other lengths, characters that
    mean something.
    """
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[\\&%$#_{}]", "", code)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", bare) == re.findall(r"\\end\{(\w+)\}", bare)[::-1]
    layout = re.sub(r">\{.*?\}p\{.*?\}", "l", re.search(r"\\begin\{tabular\}\{(.+)\}", code)[1])  # type: ignore[index]
    columns = len(layout)
    rows = [line for line in code.splitlines() if line.endswith(r"\\")]
    assert rows
    assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    words = re.sub(r"\\(begin|end|resizebox)\{.*|\$[^$]*\$", "", bare)
    assert not re.search(r"[#%_^~<>|]", words)


def test_latex_has_the_best_and_its_ties_in_bold_and_a_caption_that_stands_alone(
    make: Make,
) -> None:
    records = [
        make("a_b", seed, {"id-test": 0.9 + seed / 100, "cartoon": 0.5, "sketch": 0.5})
        for seed in range(3)
    ] + [
        make("c", seed, {"id-test": 0.8, "cartoon": 0.5004, "sketch": 0.4}, search_trials=4)
        for seed in range(3)
    ]
    text = render(tables(records, View()), Format.latex)
    check_latex(text)
    first, second = (
        line.split(" & ") for line in text.splitlines() if line.startswith(("a\\_b", "c "))
    )
    assert [r"\textbf" in cell for cell in first[1:5]] == [True, True, True, True]
    assert [r"\textbf" in cell for cell in second[1:5]] == [False, True, False, False]
    (caption,) = re.findall(r"\\caption\{(.*)\}", text)
    for part in (
        "pets",
        "tiny",
        "mean over cartoon, sketch",
        "3 seeds",
        "0 to 4 trial(s)",
        "Bold: the best",
    ):
        assert part in caption
    assert "Training" not in caption, "no column of costs is printed"


def test_latex_of_a_hostile_board_still_compiles(make: Make) -> None:
    record = make(
        label=r"50% & $x_1$ #1 {y} ~ ^ \textbf{z} [a] <b> | \input{/etc/passwd}", backbone="a_b%"
    )
    check_latex(render(tables([record, make()], View()), Format.latex))


def typeset(body: str, folder: Path, *, bibliography: str = "") -> str:
    """What pdfLaTeX and BibTeX make of an article, as text; the test fails if either complains."""
    for program in ("pdflatex", "bibtex", "pdftotext"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} on this machine")
    cited = r"\nocite{*}\bibliographystyle{plain}\bibliography{own}" if bibliography else ""
    article = (
        r"\documentclass{article}\usepackage{booktabs, array,"
        rf" graphicx}}\begin{{document}}{body}{cited}\end{{document}}"
    )
    (folder / "own.tex").write_text(article, encoding="utf-8")
    (folder / "own.bib").write_text(bibliography, encoding="utf-8")
    for command in (
        (["pdflatex"], ["bibtex"], ["pdflatex"], ["pdflatex"]) if bibliography else (["pdflatex"],)
    ):
        options = ["-interaction=nonstopmode", "-halt-on-error"] if command == ["pdflatex"] else []
        made = subprocess.run(
            [*command, *options, "own"],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        assert made.returncode == 0, made.stdout[-2000:]
        assert "Warning--" not in made.stdout
    return subprocess.run(
        ["pdftotext", "own.pdf", "-"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def test_a_table_is_typeset_whatever_stands_in_it(make: Make, tmp_path: Path) -> None:
    names = [
        r"50% & $x$ #1 {y} ~ ^ \textbf{z} | \input{/etc/passwd}",
        "[2pt] first",
        "* star",
        "a--b",
        "\u03b1 \u4e2d \U0001f600 \u00e9",
        "\u039b \u03db \u0391",  # Lambda; stigma and Alpha, for which there is no command
    ]
    records = [make(f"m{i}", label=name, backbone="b_%") for i, name in enumerate(names)]
    told = typeset(render(tables(records, View()), Format.latex), tmp_path)
    for part in (
        "50% & $x$ #1 {y}",
        r"\input{/etc/passwd}",
        "[2pt] first",
        "* star",
        "a--b",
        "\u03b1 U+4E2D U+1F600",
        "\u039b U+03DB U+0391",
    ):
        assert part in told


def test_a_table_of_many_columns_fits_the_page_and_names_what_it_leaves_out(make: Make) -> None:
    shifts = [f"shift-{i}" for i in range(9)]
    scores = [dict.fromkeys(["id-test", *shifts], 0.5 + seed / 10) for seed in (0, 1)]
    text = render(
        tables(
            [
                make(n, s, scores[s], shifts=shifts, averaged=shifts[:2])
                for n in "ab"
                for s in (0, 1)
            ],
            View(),
        ),
        Format.latex,
    )
    head = text.partition(r"\toprule")[2].partition(r"\midrule")[0]
    assert [title.strip(" \\\n") for title in head.split("&")] == [
        "method",
        "ID",
        "shift-0",
        "shift-1",
        "OOD",
    ]
    assert r"\resizebox{\ifdim\width>\linewidth" in text
    (left_out,) = re.findall(r"^% columns left out.*: (.*)", text, re.M)
    assert left_out.split(", ")[:2] == ["shift-2", "shift-3"]
    assert "training" in left_out


def test_a_negative_number_has_a_minus() -> None:
    table = Table(
        [Column("name"), Column("x", kind="percent", spread="s")],
        [{"name": "lp-2", "x": -0.04, "s": 0.01}],
    )
    assert r"lp-2 & $-$4.0 {\scriptsize $\pm$ 1.0} \\" in render([table], Format.latex)


def test_bibtex_has_every_method_once_with_those_that_it_wraps(make: Make) -> None:
    wrapped = {
        "name": "wise-ft",
        "version": 1,
        "source": "",
        "parameters": {"of": {"name": "lp-ft", "parameters": {}}},
    }
    text = bibtex(
        [make(name, seed) for name in ("wise-ft", "zero-shot", "mine") for seed in (0, 1)]
    )
    assert text.count("@") == len(re.findall(r"^@\w+\{", text, re.M)) == 2
    assert "% mine: not installed here" in text
    record = make()
    record.method = wrapped
    assert "kumar2022" in bibtex([record])


def test_the_literature_of_every_method_is_typeset(make: Make, tmp_path: Path) -> None:
    told = typeset(
        "Nothing.", tmp_path, bibliography=bibtex([make(name) for name in method_names()])
    )
    assert "counterfactual samples for robust" in told.replace("\n", " ")


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
    drawn = reported.beside(boards([record for _, record in store.records()], View()).boards[0])
    assert (
        drawn.to_dict("records")[0] | {"kind": "reported", "ood": 0.5, "id": 0.8}
        == drawn.to_dict("records")[0]
    )


def test_a_wrong_reported_file_is_told(own_reported: Path) -> None:
    path = own_reported / "pets.toml"
    path.write_text(path.read_text().replace('source = "A"', 'source = "B"'))
    with pytest.raises(UsageError, match="unknown source B"):
        reported.shipped()


def test_a_verdict_is_about_every_reported_number(make: Make) -> None:
    recipe = reported.Recipe(method="wise-ft", seeds=(0, 1), tolerance={"id": 1.0, "ood": 0.5})
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
    assert (row["state"], row["why"]) == ("to train", "beside the run from real.shiftpack")
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
    assert "no recipe is known" in str(run("reproduce", "imagenet-shifts/b16-vrf").exception)
    assert "mini-shifts/full-finetune" in run("reproduce").stdout


@pytest.fixture
def results(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for method in ("full-finetune", "wise-ft"):
        for seed in (0, 1):
            stored_run(store, method, seed)
    return store


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
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(pictures) == 3
    assert all((folder / picture).is_file() for picture in pictures)
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
    assert "What lies above the grey line" in (tmp_path / "report" / "report.md").read_text()


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
    told = run("plot", what, option, "-o", str(tmp_path / "x.svg"), "--store", str(results.root))
    assert isinstance(told.exception, UsageError)
    assert "it takes --" in told.exception.fix


def test_id_stands_not_against_itself(results: Store, tmp_path: Path) -> None:
    told = run(
        "plot", "scatter", "--y", "id", "-o", str(tmp_path / "x.svg"), "--store", str(results.root)
    )
    assert isinstance(told.exception, UsageError)


def test_the_protocol_claims_no_more_than_is_on_record(make: Make) -> None:
    scores = {"id-val": 0.9, "id-test": 0.9, "cartoon": 0.6, "sketch": 0.5}
    lacking = make("z", scores={"id-val": 0.9, "cartoon": 0.7, "sketch": 0.7})
    (board,) = boards(
        [make("a", scores=scores, search_trials=2), make("b", scores=scores), lacking], View()
    ).boards
    text = report.protocol(board)
    assert "ID is accuracy on id-test (100 images)." in text
    assert "chosen with 0 to 2 trials per row" in text
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
