"""Boards and their literature in LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.configure import method_names
from bench.leaderboard.board.tables import View, tables
from bench.leaderboard.board.typesetting import bibtex
from bench.tables.table import Column, Format, Table, render

from .conftest import Make
from support.latex import check_latex


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
    shown = typeset(render(tables(records, View()), Format.latex), tmp_path)
    for part in (
        "50% & $x$ #1 {y}",
        r"\input{/etc/passwd}",
        "[2pt] first",
        "* star",
        "a--b",
        "\u03b1 U+4E2D U+1F600",
        "\u039b U+03DB U+0391",
    ):
        assert part in shown


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
    shown = typeset(
        "Nothing.", tmp_path, bibliography=bibtex([make(name) for name in method_names()])
    )
    assert "counterfactual samples for robust" in shown.replace("\n", " ")
