"""`bench compare`: statistical tests between two rows of the leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bench.console import completion
from bench.errors import NothingMatched, UsageError
from bench.tables.table import (
    Cell,
    Column,
    Format,
    FormatOption,
    Row,
    StoreOption,
    Table,
    print_tables,
    say,
)

if TYPE_CHECKING:
    from bench.results.record import RunRecord

    from ..board.comparison import Comparison, Difference
    from ..board.groups import Group


def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="a row: its name on the board, its method, or the first characters of a fit_id",
            autocompletion=completion.rows,
        ),
    ],
    b: Annotated[
        str | None,
        typer.Argument(
            help="the row to compare with, likewise; if omitted, duplicate runs of A are compared",
            autocompletion=completion.rows,
        ),
    ] = None,
    store: StoreOption = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="only this suite; repeat it, or use * and ?")
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option("--backbone", help="only this backbone, likewise")
    ] = None,
    form: FormatOption = Format.table,
) -> None:
    """Compare two rows: do these trained models differ, and do the methods?

    The first test is about the trained models: a paired bootstrap over test images, which keeps the
    predictions of all seeds on an image together, and McNemar's exact test per seed. The second is
    about the methods: a t-test on the differences per seed; three seeds have little power. p-values
    are corrected over the datasets (Holm). A difference is A minus B. Duplicate runs, such as a
    local run and the same run in a merged pack, are compared split by split. Exit code 5 if no row
    matches.

    \b
    Examples:
      bench compare wise-ft           local runs against merged runs of the same id
      bench compare wise-ft full-finetune
      bench compare 'masked-counterfactual (mask=context)' feature-distillation --suite mini-shifts
      bench compare 3f9c1a 77ab02 --format json
    """
    from bench.results.store import Store, store_root

    from ..board.comparison import compare as compared
    from ..board.groups import groups, labels, load, one_per_seed, select
    from ..packs.copies import made_twice
    from ..statistics.predictions import Predictions

    root = Store(store_root(store))
    # Trials (--limit) and search runs are no results: their scores are on a part of the images or
    # for parameters that were not selected.
    records = [
        r for r in load(root) if r.status == "done" and r.phase != "search" and r.limit is None
    ]
    chosen = groups(select(records, suites=suite or (), backbones=backbone or ()))
    if not chosen:
        raise NothingMatched(
            "there are no results to compare",
            where=str(root.root),
            fix="run `bench run METHOD` first",
        )
    made: list[Table] = []
    predictions, matched = Predictions(root), False
    # The names are looked up in every group of comparable runs: a method usually has a row per
    # suite and backbone, and a group without both rows is skipped.
    for group in chosen:
        counted = one_per_seed(group.records)
        named = labels(counted)
        left, right = (_row(name, counted, named, group) for name in (a, b or a))
        if left is None or right is None:
            continue
        if b is not None and left == right:
            raise UsageError(
                f"`{a}` and `{b}` are the same row: {named[left]}",
                where=group.suite,
                fix=f"run `bench compare '{a}'` to compare its duplicate runs",
            )
        runs = [[r for r in counted if _key(r) == key] for key in (left, right)]
        if b is not None:
            found = compared(runs[0], runs[1], predictions, (named[left], named[right]))
            made += tables(found, f"{group.suite} · {group.backbone}")
        made += made_twice(root, [*runs[0], *(runs[1] if b is not None else [])])
        matched = True
    # With one name, a row without duplicates leaves nothing to print, although the name is right.
    if b is None and matched and not made:
        raise NothingMatched(
            f"`{a}` has no duplicate runs", fix="name a second row to compare with"
        )
    if not made:
        raise _nothing(a, b or a, chosen)
    print_tables(made, form)


def _key(record: RunRecord) -> str:
    from ..board.groups import row_key

    return row_key(record)


def _row(
    name: str, records: Sequence[RunRecord], named: dict[str, str], group: Group
) -> str | None:
    """Find the key of the row called `name` in a group; None if there is none.

    Raises:
        UsageError: several rows match; they are listed on stderr.
    """
    # From the most to the least specific, and the first that matches decides: the name on the board
    # is unique, a label or a method can have several rows, and a method called like the start of an
    # id must not be shadowed by that id.
    matches = {key for key, label in named.items() if label == name}
    if not matches:
        matches = {_key(r) for r in records if name in (r.label, r.method.get("name"))}
    # Fewer than four hexadecimal digits would match runs by chance.
    if not matches and len(name) >= 4:
        matches = {_key(r) for r in records if r.fit_id.startswith(name)}
    if len(matches) > 1:
        for key in matches:
            fits = ", ".join(r.fit_id[:10] for r in records if _key(r) == key)
            say(f"{named[key]}  (fits {fits})")
        raise UsageError(
            f"`{name}` means {len(matches)} rows of {group.suite} on {group.backbone}",
            fix="quote one of the names above, or pass the start of a fit_id",
        )
    return matches.pop() if matches else None


def _nothing(a: str, b: str, chosen: Sequence[Group]) -> NothingMatched:
    """Explain why no group has both rows: an unknown name, other places, or other conditions."""
    from ..board.groups import labels, one_per_seed

    # An unknown name is the likelier mistake, and is reported before anything about conditions.
    places: dict[str, list[Group]] = {a: [], b: []}
    for group in chosen:
        counted = one_per_seed(group.records)
        for name, found in places.items():
            if _row(name, counted, labels(counted), group) is not None:
                found.append(group)
    missing = [name for name, found in places.items() if not found]
    if missing:
        names = sorted(
            {label for group in chosen for label in labels(one_per_seed(group.records)).values()}
        )
        listed = "; ".join(names[:8]) + (f"; and {len(names) - 8} more" if len(names) > 8 else "")
        return NothingMatched(f"no row is called `{missing[0]}`", fix=f"one of: {listed}")
    # Both rows exist. The first group of each is its main one, and the one to explain.
    one, other = places[a][0], places[b][0]
    if (one.suite, one.backbone) != (other.suite, other.backbone):
        why = (
            f"`{a}` ran on {one.suite} with {one.backbone}, `{b}` on {other.suite} with"
            f" {other.backbone}"
        )
    else:
        fields = {**one.apart, **other.apart}
        why = "they differ in " + ", ".join(fields)
    return NothingMatched(
        "the two rows have no comparable runs",
        where=why,
        fix="run both on the same suite, data and weights",
    )


def tables(of: Comparison, place: str) -> list[Table]:
    """Return the verdicts in words, then the tables of numbers behind them.

    Args:
        of: the comparison.
        place: suite and backbone, for the title.
    """
    models, method = of.verdict
    # The columns that only machines get make a joined csv (all tables in one) unambiguous.
    first = Table(
        [
            Column("question"),
            Column("verdict"),
            Column("suite", human=False),
            Column("a", human=False),
            Column("b", human=False),
        ],
        [
            {
                "question": "these trained models",
                "verdict": models,
                "suite": place,
                "a": of.a,
                "b": of.b,
            },
            {"question": "the method", "verdict": method, "suite": place, "a": of.a, "b": of.b},
        ],
        f"{of.a} against {of.b} on {place}",
    )
    few = " Few seeds give wide intervals; use five or more." if len(of.seeds) < 5 else ""
    return [
        first,
        _differences(
            of.models,
            "these trained models, on other images of the same kind",
            "images",
            "A minus B in points, with a 95 % paired bootstrap interval over the images of one data"
            " set. p is corrected over the datasets (Holm), except for the OOD mean, which is a"
            " separate question.",
        ),
        _differences(
            of.method,
            "the method, with other seeds",
            "seeds",
            f"A minus B in points, means over the shared seeds ({_seeds(of)}), with a 95 %"
            " t-interval of the per-seed differences. p is corrected over the datasets"
            f" (Holm).{few}",
        ),
        _tests(of),
        _alike(of),
    ]


def _seeds(of: Comparison) -> str:
    # Two rows may share no seed; the table then gives the reason and has no rows.
    return ", ".join(map(str, of.seeds)) or "none"


def _differences(found: Sequence[Difference], title: str, units: str, note: str) -> Table:
    # A reason column is shown only where some row needs it.
    columns = [
        Column("about", "dataset"),
        Column("a", "A", "percent"),
        Column("b", "B", "percent"),
        Column("shown", "A - B [95 %]"),
        Column("difference", human=False),
        Column("low", human=False),
        Column("high", human=False),
        Column("deterministic", human=False),
        Column("p", human=False),
        Column("p_holm", human=False),
        Column("p_shown", "p"),
        Column("units", units, "count"),
        Column("verdict", "A is"),
        Column("missing", human=any(d.missing for d in found)),
    ]
    reasons = {one.missing for one in found}
    # Where nothing could be tested for one reason, a single sentence replaces the rows.
    if len(reasons) == 1 and "" not in reasons:
        return Table(columns, [], title, [f"Not tested: {reasons.pop()}."])
    return Table(columns, [_difference(one) for one in found], title, [note])


def _difference(one: Difference) -> Row:
    from ..board.comparison import spread_of

    row: dict[str, Cell] = {
        "about": one.about,
        "a": one.a,
        "b": one.b,
        "difference": one.value,
        "p": one.p,
    }
    row |= {
        "p_holm": one.p_holm,
        "units": one.units or None,
        "verdict": one.verdict,
        "missing": one.missing,
    }
    row["deterministic"] = one.deterministic
    # `p_shown` and `shown` are for people; csv and json get the numbers in full precision.
    if one.p_holm is not None:
        row["p_shown"] = _p(one.p_holm)
    if one.value is not None:
        row["shown"] = f"{100 * one.value:+.1f}{spread_of(one)}"
    if one.interval:
        row |= {"low": one.interval.low, "high": one.interval.high}
    return row


def _tests(of: Comparison) -> Table:
    """Return McNemar's tests with one column per seed: an exact test is of one pair of models."""
    rows: dict[str, dict[str, Cell]] = {}
    for test in of.tests:
        row, at = rows.setdefault(test.about, {"about": test.about}), f"seed_{test.seed}"
        row[at] = f"{test.only_a} : {test.only_b}, p {_p(test.p_holm)}"
        row |= {
            f"{at}_only_a": test.only_a,
            f"{at}_only_b": test.only_b,
            f"{at}_p": test.p,
            f"{at}_p_holm": test.p_holm,
        }
    columns = [
        Column("about", "dataset"),
        *(Column(f"seed_{seed}", f"seed {seed}") for seed in of.seeds),
    ]
    # People read a test as one cell per seed, machines as four numbers.
    parts = ("only_a", "only_b", "p", "p_holm")
    columns += [Column(f"seed_{seed}_{part}", human=False) for seed in of.seeds for part in parts]
    note = (
        "Images that exactly one of a seed's two models gets right, as only A : only B. Exact"
        " two-sided test; p is corrected over the datasets of that seed (Holm)."
    )
    return Table(columns, list(rows.values()), "McNemar's test, per seed", [note])


def _p(value: float) -> str:
    # Three decimals would print a small p as 0.
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _alike(of: Comparison) -> Table:
    keys = {
        "same": "same prediction",
        "both_right": "both right",
        "only_a": "only A",
        "only_b": "only B",
        "both_wrong": "both wrong",
        "overlap": "shared errors",
    }
    columns = [
        Column("about", "dataset"),
        *(Column(key, title, "percent") for key, title in keys.items()),
    ]
    rows: list[Row] = [
        {"about": x.about, **{key: getattr(x, key) for key in keys}, "kappa": x.kappa}
        for x in of.alike
    ]
    notes = [
        "Means over the shared seeds. Shared errors: images that both get wrong, as a share of"
        " those that either gets wrong. Error consistency: Cohen's kappa of right and wrong"
        " (Geirhos et al., 2020); 0 for two independent models of these accuracies, at most 1."
    ]
    return Table(
        [*columns, Column("kappa", "error consistency", "number")],
        rows,
        "agreement and overlap of errors",
        notes,
    )
