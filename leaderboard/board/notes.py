"""Write the title of a board, and the notes below it: how to read it, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bench.plain import plain
from bench.results.record import RunRecord
from bench.run_spec import REFERENCE

from ..statistics.tradeoff import ID
from .baseline import FEWEST, standard_models
from .groups import Group
from .measures import ABOVE
from .rows import Board

if TYPE_CHECKING:
    # `tables` imports this module when it runs.
    from .tables import View


def title(of: Board) -> str:
    """Return the title of a board, which says why if it is not ranked with the main one."""
    name = f"{of.group.suite} · {of.group.backbone}"
    # Such a board is below the ranked one and looks like it.
    if of.kind == "limited":
        return (
            name + f": {of.group.facts['images per split']} images per split, a trial run and"
            " not a result"
        )
    return name + (
        f": not comparable with the table above: {_differences(of.group)}"
        if of.kind == "apart"
        else ""
    )


def _differences(group: Group, most: int = 3) -> str:
    """Return in which facts a group differs from the main one."""
    parts = [
        # Most facts are hashes, whose first characters are enough to tell them apart.
        f"{key} is {here[:16]} here and {above[:16]} above"
        for key, (above, here) in group.apart.items()
    ]
    return "; ".join(parts[:most]) + (
        f"; and {len(parts) - most} more fields" if len(parts) > most else ""
    )


def notes(of: Board, view: View) -> list[str]:
    """Return the sentences below a board: how to read its numbers, and what is missing or uneven.

    Captions in print contain the first one, so that it mentions accuracies only and no cost.
    """
    return [
        # Reading aids come first, then gaps, then warnings about uneven rows.
        _reading(of, view),
        "Training = mean wall time with nested fits.",
        *_ties(of),
        *_front(of),
        *_baseline(of, view),
        *_off_curve(of, view),
        *_missing(of),
        *unvaried(of),
        *_seeds(of),
        *_marks(of.records),
    ]


def _reading(of: Board, view: View) -> str:
    """Explain what the numbers are, over what they are averaged, and what is behind them."""
    records, shifts = of.records, of.shifts
    # The metric of ID is named for all; a shift with another metric is named in brackets.
    metric = next((r.metrics[ID].metric for r in records if ID in r.metrics), "accuracy")
    over = (
        f"mean over {', '.join(shifts.shared)}"
        if shifts.shared
        else "empty, since no shift was measured in every run"
    )
    counts = sorted({len(row.records) for row in of.rows})
    seeds = (
        "1 seed"
        if counts == [1]
        else f"{counts[0]} seeds"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} seeds"
    )
    spread = f"mean ± sample SD over {seeds}" if counts[-1] > 1 else "one seed, so no spread"
    if view.spread == "seeds":
        spread = (
            f"mean over {seeds} with its 95 % t-interval over seeds (no width where accuracies"
            " coincide, which is no certainty)"
        )
    elif view.spread == "images":
        spread = (
            f"mean over {seeds} with its 95 % Wilson interval over images (MOVER for means over"
            " shifts)"
        )
    above = ""
    if of.curves:
        curve = next(iter(of.curves.values())).label
        above = (
            f" Above curve = OOD minus what the interpolation curve of the same seed's {curve}"
            " offers at that ID"
        )
        above += ", interval by a paired bootstrap of both." if view.spread == "images" else "."
    factors = (
        " In brackets: the number of shifts behind a factor, those outside the OOD average"
        " included."
        if view.by == "factor"
        else ""
    )
    metrics = {
        r.metrics[s].metric for r in records for s in (ID, *shifts.all) if s in r.metrics
    } - {metric}
    other = f" (some shifts: {', '.join(sorted(metrics))})" if metrics else ""
    return f"ID = {metric} on {ID}, OOD = {over}, in percent{other}; {spread}.{factors}{above}"


def _ties(of: Board) -> list[str]:
    """Explain the marks of ties, or why there are none."""
    if not of.ties_question:
        return []
    measure = of.measure(of.ties_about)
    assert measure is not None
    if of.ties_missing:
        return [f"Ties with the best are not marked: {of.ties_missing}."]
    if of.ties_question == "models":
        what = (
            "these trained models (test images vary; their outcomes paired by image; max-t over all"
            " pairs of rows"
        )
    else:
        what = "the methods over seeds (seeds vary; paired t-tests; Holm over all pairs of rows"
    return [
        (
            f"vs best: `tie` for rows not shown to be below the best {measure.title}, as {what},"
            " family-wise error 5 %). A row with no mark is shown to be below another one. rank:"
            " interval, for all tested rows at once."
        ),
        *(f"{name} is not tested: {why}." for name, why in of.ties_untested.items()),
    ]


def _front(of: Board) -> list[str]:
    """Name the rows on the Pareto front."""
    names = [row.name for row in of.rows if row.front]
    return (
        [f"On the Pareto front of mean ID and mean OOD: {', '.join(names)}."]
        # A single row is always on its own front.
        if len(of.rows) > 1 and names
        else []
    )


def _baseline(of: Board, view: View) -> list[str]:
    """Explain effective robustness, or why a declared baseline gives none."""
    # Somebody who passed --baseline expects the column, and has to learn what it lacks.
    if view.baseline and not of.lines:
        declared = standard_models(of.group.suite, view.baseline)
        return [
            f"There is no effective robustness: of the {len(declared)} backbone(s) that"
            f" {view.baseline.name} declares standard for {of.group.suite}, fewer than {FEWEST}"
            f" have {REFERENCE} runs here on the same data."
        ]
    if of.measure("effective") is None:
        return []
    of_id = ", ".join(f"{shift} in {line.id}" for shift, line in of.lines.items())
    return [
        "Effective = mean over the OOD average's shifts of the accuracy above the line of standard"
        f" models in logit space, at the row's own ID accuracy ({of_id};"
        f" {'; '.join(dict.fromkeys(line.source for line in of.lines.values()))})."
    ]


def _off_curve(of: Board, view: View) -> list[str]:
    """Explain missing distances above the curve, and missing intervals where they are shown."""
    blank = _by_reason(
        {
            row.name: row.cells[ABOVE].missing
            for row in of.rows
            if ABOVE in row.cells and row.cells[ABOVE].missing
        }
    )
    made = [f"Above curve is blank for {who}: {why}." for why, who in blank.items()]
    if view.spread == "images":
        made += [
            f"Above curve has no interval over images for {who}: {why}."
            for why, who in _by_reason(of.above_unspread).items()
        ]
    return made


def _by_reason(found: Mapping[str, str]) -> dict[str, str]:
    """Return reason -> names of the rows that have it, or their number if there are many."""
    # One sentence per reason: a board has many rows and few reasons.
    made: dict[str, list[str]] = {}
    for name, why in found.items():
        made.setdefault(why, []).append(name)
    return {
        why: ", ".join(names) if len(names) <= 3 else f"{len(names)} rows"
        for why, names in made.items()
    }


def _missing(of: Board) -> list[str]:
    """Explain missing splits, and which shifts the OOD average leaves out for which reason."""
    records, shifts = of.records, of.shifts
    made, outside = [], []
    runs = [(row, record) for row in of.rows for record in row.records]
    for split in (ID, *shifts.all):
        reasons: dict[str, list[str]] = {}
        for row, record in runs:
            if split not in record.metrics:
                why = record.holes.get(split) or "not evaluated; the same `bench run` again adds it"
                # Reasons come from records, and those in packs from others: control characters are
                # escaped.
                reasons.setdefault(plain(why), []).append(f"{row.name} (seed {record.seed})")
        for why, who in reasons.items():
            listed = ", ".join(who[:4]) + (f" and {len(who) - 4} more" if len(who) > 4 else "")
            made.append(f"{split} is missing for {listed}: {why}.")
        # Three cases, of which the reader can change the first: a run lacks the shift, the runs'
        # cards disagree on the average, or the card leaves the shift out.
        if split != ID and reasons and any(split in r.averaged for r in records):
            made.append(
                f"{split} is left out of the OOD average of every row, since not every run has it."
            )
        elif (
            split != ID and split not in shifts.shared and any(split in r.averaged for r in records)
        ):
            made.append(
                f"{split} is left out of the OOD average of every row, since not every run's card"
                " declares it."
            )
        elif split != ID and split not in shifts.shared:
            outside.append(split)
    if outside:
        made.append(
            f"Not in the OOD average, since the suite's card leaves it out: {', '.join(outside)}."
        )
    return made


def unvaried(of: Board) -> list[str]:
    """Return the sentence on rows that no seed changes, if there are any."""
    who = _by_reason({row.name: "" for row in of.rows if row.deterministic}).get("")
    curve = "; above curve varies with the curve alone" if of.curves else ""
    sentence = (
        f"Deterministic, so that there is no spread over seeds: {who}; all seeds score the same on"
        f" every split{curve}."
    )
    return [sentence] if who else []


def _seeds(of: Board) -> list[str]:
    """Warn of unequal seeds."""
    # An external checkpoint is one model, whatever its seed.
    seeds = [frozenset(r.seed for r in row.records) for row in of.rows if not row.external]
    made = []
    if len({len(own) for own in seeds}) > 1:
        made.append("The rows have unequal numbers of seeds: their means are not equally certain.")
    elif len(set(seeds)) > 1:
        made.append("The rows have different seeds.")
    if of.aside:
        made.append(
            f"{of.aside} earlier run(s) of the same method and seed are not counted: the newest is."
        )
    return made


def _marks(records: Sequence[RunRecord]) -> list[str]:
    """Warn of what makes runs uneven: search budgets, ASHA, seen data, packs, other images."""
    made = []
    # The search behind external weights is unknown, which is not a budget of 0.
    trials = sorted({r.search_trials for r in records if r.phase != "external"})
    if len(trials) > 1:
        none = " (0: parameters of the recipe, or given by hand)" if trials[0] == 0 else ""
        made.append(
            f"The rows had unequal search budgets: {trials[0]} to {trials[-1]} trials{none}."
        )
    cut = sorted({r.label for r in records if r.search_cut_short})
    if cut:
        made.append(
            f"ASHA cut short the search that chose the parameters of {', '.join(cut)}. It favours"
            " what learns fast early, and its choice depends on the order in which results arrive."
        )
    if any(r.id_val_seen for r in records):
        made.append(
            "id-val is seen data: this backbone was pre-trained on the suite's own training images,"
            " so that selection on id-val is optimistic."
        )
    merged = sum(bool(r.origin) for r in records)
    if merged:
        made.append(
            f"{merged} run(s) come from packs of others: re-scored from their predictions, not"
            " trained again here."
        )
    # Every run on the same data states the same, which is one note.
    for split, how in dict.fromkeys(item for r in records for item in r.miscounted.items()):
        made.append(f"{split}: {how}; published numbers are of other images.")
    made += [
        f"{sentence}."
        for sentence in dict.fromkeys(
            sentence for r in records for sentence in r.duplicates_reported()
        )
    ]
    skipped = sum(metrics.skipped_unreadable for r in records for metrics in r.metrics.values())
    if skipped:
        made.append(
            f"{skipped} unreadable image(s) were skipped, over all runs and splits (`bench show`"
            " names the splits)."
        )
    return made
