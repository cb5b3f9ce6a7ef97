"""Images whose class is a word that stands beside them: in a list, in a file of their name, in a column, in an archive's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..cards.data_set import Naming
from ..cards.labels import ClassList
from .folder import remarks_on
from .here import DataSet, NotHere


def labelled(
    data_set: DataSet, labels: Sequence[int], images: pd.DataFrame, named_by: Sequence[Naming], what: str
) -> tuple[pd.DataFrame, list[str]]:
    """The images of wanted classes with the columns `label`, `class` (identity), `folder` and `group`, and remarks.

    Args:
        labels: as in `parts.open_part`. images: an index with the column `token`, the word (missing where there is none).

    Raises:
        NotHere: no word is that of a wanted class.
    """
    classes = data_set.classes
    tokens = sorted(set(images["token"].dropna()))
    numbers = classes.labels_of(tokens, named_by)
    wanted = {token: labels[number] for token, number in numbers.items() if labels[number] >= 0}
    if not wanted:
        raise NotHere(f"{data_set.card.title}: no image of a known class in {what}")
    chosen = images[images["token"].isin(list(wanted))].copy()
    chosen["folder"] = chosen["token"]
    chosen["label"] = chosen["token"].map(wanted).astype("int64")
    chosen["class"] = chosen["token"].map({token: classes.ids[number] for token, number in numbers.items()})
    chosen["group"] = -1
    remarks = class_remarks(what, classes, tokens, numbers, lacking="no image", called="labels")
    unlabelled = list(images["key"][images["token"].isna()])
    if unlabelled:
        remarks.append(f"{what}: {len(unlabelled)} images that no class is given for are missing: {_some(unlabelled, 3)}")
    return chosen, remarks + remarks_on(chosen, what)


def class_remarks(
    what: str, classes: ClassList, present: Sequence[str], numbers: Mapping[str, int], *, lacking: str, called: str
) -> list[str]:
    """Which classes are not there, and which words (folders, labels) are none of them.

    Args:
        present: the words that are there. numbers: the class that a word stands for. lacking: what a missing class has.
        called: what the words are.
    """
    remarks = []
    missing = [classes.ids[number] for number in sorted(set(range(len(classes))) - set(numbers.values()))]
    if missing:
        remarks.append(f"{what}: {len(missing)} of {len(classes)} classes have {lacking}: {_some(missing)}")
    extra = [word for word in present if word not in numbers]
    if extra:
        remarks.append(f"{what}: {len(extra)} {called} are none of its {len(classes)} classes (left out): {_some(extra)}")
    return remarks


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
