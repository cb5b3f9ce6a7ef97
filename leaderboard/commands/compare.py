"""`bench compare`: two rows of the board against each other, with the question that each answer is
about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

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
            help="a row: its name on the board, its method, or the beginning of a fit_id"
        ),
    ],
    b: Annotated[
        str | None,
        typer.Argument(
            help="the row to compare it with, likewise; without one, A's runs that were made twice"
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
    """Compare two rows: are these trained models different, and is the method?

    The first answer is about the models as they are: test images are resampled (paired bootstrap;
    what all seeds say about an image stays together), with McNemar's exact test per seed beside it.
    The second is about the recipe: seeds vary (t on per-seed differences), and three seeds can tell
    little. p-values are corrected over the data sets (Holm). A difference is A minus B. Runs that
    were made twice, such as here and in a pack that was merged, are compared with each other, split
    by split. Exit code 5 if no row matches.

    \b
    Examples:
      bench compare wise-ft           its runs here and those of the same id in packs
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
    records = [
        r for r in load(root) if r.status == "done" and r.phase != "search" and r.limit is None
    ]
    chosen = groups(select(records, suites=suite or (), backbones=backbone or ()))
    if not chosen:
        raise NothingMatched(
            "there are no results to compare",
            where=str(root.root),
            fix="`bench run METHOD` makes some",
        )
    made: list[Table] = []
    predictions, there = Predictions(root), False
    for group in chosen:
        counted = one_per_seed(group.records)
        named = labels(counted)
        left, right = (_row(name, counted, named, group) for name in (a, b or a))
        if left is None or right is None:
            continue
        if b is not None and left == right:
            where, fix = (
                group.suite,
                f"`bench compare '{a}'` compares its runs that were made twice",
            )
            raise UsageError(
                f"`{a}` and `{b}` are the same row: {named[left]}", where=where, fix=fix
            )
        runs = [[r for r in counted if _key(r) == key] for key in (left, right)]
        if b is not None:
            found = compared(runs[0], runs[1], predictions, (named[left], named[right]))
            made += tables(found, f"{group.suite} · {group.backbone}")
        made += made_twice(root, [*runs[0], *(runs[1] if b is not None else [])])
        there = True
    if b is None and there and not made:
        raise NothingMatched(
            f"no run of `{a}` was made twice", fix="name a second row to compare it with"
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
    """Key of the row that `name` means in a group; None if it means none there.

    Raises:
        UsageError: it means several; they are listed on stderr.
    """
    exact = {key for key, label in named.items() if label == name}
    if not exact:
        exact = {_key(r) for r in records if name in (r.label, r.method.get("name"))}
    if not exact and len(name) >= 4:
        exact = {_key(r) for r in records if r.fit_id.startswith(name)}
    if len(exact) > 1:
        for key in exact:
            fits = ", ".join(r.fit_id[:10] for r in records if _key(r) == key)
            say(f"{named[key]}  (fits {fits})")
        raise UsageError(
            f"`{name}` means {len(exact)} rows of {group.suite} on {group.backbone}",
            fix=(
                "give one of the names above in quotation marks, or the beginning of one of its"
                " fits"
            ),
        )
    return exact.pop() if exact else None


def _nothing(a: str, b: str, chosen: Sequence[Group]) -> NothingMatched:
    from ..board.groups import labels, one_per_seed

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
    """The verdict in words, then the numbers behind it."""
    models, method = of.verdict
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
    few = (
        " Few seeds make wide intervals: five or more tell much more than three."
        if len(of.seeds) < 5
        else ""
    )
    return [
        first,
        _differences(
            of.models,
            "these trained models, on other images of the same kind",
            "images",
            "A minus B in points with a 95 % paired bootstrap interval over images; p corrected by"
            " Holm over the data sets, but not that of the OOD mean, which is a question of its"
            " own. The interval is of one data set by itself.",
        ),
        _differences(
            of.method,
            "the method, with other seeds",
            "seeds",
            "A minus B in points, means over the shared seeds"
            f" ({', '.join(map(str, of.seeds)) or 'none'}), 95 % t-interval of the per-seed"
            f" differences; p corrected by Holm over the data sets.{few}",
        ),
        _tests(of),
        _alike(of),
    ]


def _differences(found: Sequence[Difference], title: str, units: str, note: str) -> Table:
    columns = [
        Column("about", "data set"),
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
        Column("missing", human=any(d.hole for d in found)),
    ]
    holes = {one.hole for one in found}
    if len(holes) == 1 and "" not in holes:  # one reason for all is said once
        return Table(columns, [], title, [f"Not tested: {holes.pop()}."])
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
        "missing": one.hole,
    }
    row["deterministic"] = one.deterministic
    if one.p_holm is not None:
        row["p_shown"] = _p(one.p_holm)
    if one.value is not None:
        row["shown"] = f"{100 * one.value:+.1f}{spread_of(one)}"
    if one.interval:
        row |= {"low": one.interval.low, "high": one.interval.high}
    return row


def _tests(of: Comparison) -> Table:
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
        Column("about", "data set"),
        *(Column(f"seed_{seed}", f"seed {seed}") for seed in of.seeds),
    ]
    parts = ("only_a", "only_b", "p", "p_holm")
    columns += [Column(f"seed_{seed}_{part}", human=False) for seed in of.seeds for part in parts]
    note = (
        "Discordant images of the two models of one seed: only A right : only B right; exact"
        " two-sided test, p corrected by Holm over that seed's data sets."
    )
    return Table(columns, list(rows.values()), "McNemar's test, per seed", [note])


def _p(value: float) -> str:
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
        Column("about", "data set"),
        *(Column(key, title, "percent") for key, title in keys.items()),
    ]
    rows: list[Row] = [
        {"about": x.about, **{key: getattr(x, key) for key in keys}, "kappa": x.kappa}
        for x in of.alike
    ]
    notes = [
        "Means over the shared seeds. Shared errors: wrong for both, of the images wrong for"
        " either. Error consistency: kappa of right and wrong (Geirhos et al., 2020), 0 for what"
        " two independent models of these accuracies would show, 1 at most."
    ]
    return Table(
        [*columns, Column("kappa", "error consistency", "number")],
        rows,
        "agreement and overlap of errors",
        notes,
    )
