"""What a stranger may have changed in a pack, and the reason for which it is then refused."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .packs import Forger

Tamper = Callable[[Forger], Any]


def _ood(point: dict[str, Any]) -> float:
    return float(np.mean([point["scores"][split] for split in ("art", "sketch")]))


def _metric(name: str, value: float) -> Tamper:
    return lambda f: f.record(lambda r: r["metrics"]["art"].update({name: value}))


def _everywhere(name: str, value: Any) -> Tamper:
    """A field in the record and in the identity, with ids that follow."""

    def change(record: dict[str, Any]) -> None:
        record[name] = value
        record["identity"]["fit"][name] = value

    return lambda f: f.reidentified(change)


def _member(name: str, mode: int = stat.S_IFREG | 0o644) -> Tamper:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return lambda f: f.members.append((entry, b"/etc/passwd"))


def _relabel(f: Forger) -> None:
    """Other labels for one run's images: a story of its own that contradicts the other runs'."""
    f.table("images", lambda c: c.update(label=[0] * len(c["label"])), run=1)


def _twice(f: Forger) -> None:
    f.members.append(("manifest.json", b"{}"))


def swap(f: Forger) -> None:
    one, other = f.manifest["runs"][:2]
    one["outcomes"], other["outcomes"] = other["outcomes"], one["outcomes"]


def _first(name: str, value: Any) -> Tamper:
    return lambda f: f.table("outcomes", lambda c: c[name].__setitem__(0, value))


def _compress(f: Forger) -> None:
    f.compression = zipfile.ZIP_DEFLATED


def _quietly(change: Tamper) -> Tamper:
    """Without the hashes that would follow the change."""

    def tamper(f: Forger) -> None:
        f.rehash = False
        change(f)

    return tamper


def _newer(f: Forger) -> None:
    f.manifest["shiftpack"] = 99


def _spoil_a_blob(f: Forger) -> None:
    sha = f.manifest["runs"][0]["record"]
    f.blobs[sha] += b" "


def _lose_a_blob(f: Forger) -> None:
    del f.blobs[f.manifest["runs"][0]["outcomes"]["art"]]


def _drop_a_split(f: Forger) -> None:
    del f.manifest["runs"][0]["outcomes"]["sketch"]


def _shorten(columns: dict[str, Any]) -> None:
    for name in columns:
        columns[name] = columns[name][:-10]


def _repeat_an_image(f: Forger) -> None:
    f.table("images", lambda c: c["key"].__setitem__(1, c["key"][0]))


def _multiply(
    f: Forger, rows: int = 200_000, key: str = "x" * 200, *, dictionary: bool = True
) -> None:
    """Many images in a few kilobytes."""
    f.record(lambda r: r["metrics"]["art"].update(images=rows))
    table = pa.table({"key": [key] * rows, "label": [0] * rows, "group": [0] * rows})
    buffer = io.BytesIO()
    coded = [*(["key"] if dictionary else []), "label", "group"]
    pq.write_table(table, buffer, compression="zstd", use_dictionary=coded, write_statistics=False)
    assert len(buffer.getvalue()) < 20_000
    f.manifest["runs"][0]["images"]["art"] = f.put(buffer.getvalue())


_NAN = float("nan")
TAMPERING: dict[str, tuple[Tamper, str]] = {
    "average over an ID split": (
        lambda f: f.record(lambda r: r.update(averaged=["id-test"])),
        "splits that are not its shifts",
    ),
    "more images stated than predicted": (
        _metric("images", 61),
        "states 61 images, but the pack has 60",
    ),
    "fewer rows": (
        lambda f: f.table("outcomes", _shorten),
        "states 60 images, but the pack has 50",
    ),
    "many images of one name": (_multiply, "bytes cannot name 200000 images"),
    "many images of no names": (
        partial(_multiply, dictionary=False, key=""),
        "bytes cannot name 200000 images|would unpack to",
    ),
    "many images of one long name": (
        partial(_multiply, dictionary=False),
        "its predictions would unpack to 4",
    ),
    "other labels than other runs": (_relabel, "labels are not those of the data that it names"),
    "an image twice": (_repeat_an_image, "an image occurs twice"),
    "a prediction of no class": (_first("prediction", -1), "a class has a negative number"),
    "an edited logit of the label": (
        _first("label_logit", 99.0),
        "a label's logit exceeds the largest one",
    ),
    "predictions that are not finite": (_first("maximum", _NAN), "not finite"),
    "a missing split": (_drop_a_split, "the same splits"),
    "another seed": (
        lambda f: f.record(lambda r: r.update(seed=7)),
        "its record and its identity differ in the seed",
    ),
    "other parameters": (
        lambda f: f.record(lambda r: r["method"]["parameters"].update(lr=1.0)),
        "its record and its identity differ in the method",
    ),
    "an identity that was edited": (
        lambda f: f.record(lambda r: r["identity"]["fit"].update(train="u" * 64)),
        "its fit_id is not the hash",
    ),
    "other data": (
        lambda f: f.record(
            lambda r: (
                r["data"].update(art="0" * 64),
                r["identity"]["evaluation"]["data"].update(art="0" * 64),
            )
        ),
        "its eval_id is not the hash",
    ),
    "other pixels": (
        lambda f: f.record(lambda r: r.update(pixels="pil-bicubic-9-9")),
        "differ in the pixels",
    ),
    "another label": (
        lambda f: f.record(lambda r: r.update(label="ours")),
        "is not that of the method",
    ),
    "a run on a part of the images": (
        lambda f: f.record(lambda r: r.update(limit=10)),
        "not the result of a finished run",
    ),
    "an unfinished run": (
        lambda f: f.record(lambda r: r.update(status="failed")),
        "not the result of a finished run",
    ),
    "a record without identity": (
        lambda f: f.record(lambda r: r.update(identity={})),
        "has no identity",
    ),
    "NaN in a record": (
        lambda f: f.record(lambda r: r.update(fit_seconds=_NAN)),
        "a record is damaged",
    ),
    "a negative time": (
        lambda f: f.record(lambda r: r.update(fit_seconds=-1)),
        "fit_seconds is negative",
    ),
    "a negative class on a curve": (
        lambda f: f.table("curve", lambda c: c["0"].__setitem__(0, -1)),
        "a negative number",
    ),
    "a curve with a hole": (
        lambda f: f.manifest["runs"][0]["curve"].pop("art"),
        "the same splits",
    ),
    "a curve of other points": (
        lambda f: f.table("curve", lambda c: c.update({"0.7": c.pop("0.5")})),
        "the expected columns",
    ),
    "a short curve": (
        lambda f: f.table("curve", lambda c: [x.pop() for x in c.values()]),
        "the pack has 59",
    ),
    "a temperature below zero": (
        lambda f: f.record(lambda r: r.update(temperature=-1.0)),
        "its temperature is -1",
    ),
    "a Brier score beyond 2": (_metric("brier", 2.5), "a Brier score is outside"),
    "another metric": (_metric("metric", "luck"), "the metric of art is luck"),
    "a curve beyond 100 %": (
        lambda f: f.record(
            lambda r: r.update(
                curve=[{"alpha": 0.0, "scores": dict.fromkeys(r["metrics"], 1.5), "ood": 1.5}]
            )
        ),
        "outside of 0 to 1",
    ),
    "a record of a newer version": (
        lambda f: f.record(lambda r: r.update(record_schema=99)),
        "schema 99",
    ),
    "a record that is none": (lambda f: f.record(lambda r: r.clear()), "a record is damaged"),
    "a backbone with an escape sequence": (
        lambda f: f.record(lambda r: r.update(backbone="tiny\x1b[31m")),
        "unprintable",
    ),
    "a label with a bell": (
        lambda f: f.record(lambda r: r.update(label="wise-ft (\x07)")),
        "unprintable",
    ),
    "a label that is written backwards": (
        lambda f: f.record(lambda r: r.update(label="wise-ft (\u202e)")),
        "unprintable",
    ),
    "a hole of two lines": (
        lambda f: f.record(lambda r: r["holes"].update({"art\n": "none"})),
        "unprintable",
    ),
    "a parameter with an escape sequence": (
        lambda f: f.record(lambda r: r["method"]["parameters"].update({"\x9b31m": 1})),
        "unprintable",
    ),
    "a suite that climbs": (
        lambda f: f.record(lambda r: r.update(suite="..")),
        "cannot be a folder",
    ),
    "a suite with a path": (
        lambda f: f.record(lambda r: r.update(suite="../../etc")),
        "cannot be a folder",
    ),
    "a backbone that climbs": (
        lambda f: f.record(lambda r: r.update(backbone="..")),
        "the backbone has a name",
    ),
    "an id with a path": (
        lambda f: f.record(lambda r: r.update(eval_id="../../../../x")),
        "not one of 24 hexadecimal",
    ),
    "other columns": (
        lambda f: f.table("outcomes", lambda c: c.update(extra=[0] * 60)),
        "the expected columns",
    ),
    "holes": (_first("maximum", None), "missing values"),
    "an edited manifest": (_quietly(lambda f: f.manifest["runs"].pop()), "its manifest was edited"),
    "a newer pack": (_newer, "schema 99"),
    "a changed blob": (_quietly(_spoil_a_blob), "was changed"),
    "a lost blob": (_quietly(_lose_a_blob), "is missing"),
    "a run twice": (lambda f: f.manifest["runs"].append(f.manifest["runs"][0]), "a run twice"),
    "a path outside": (_member("../../outside"), "does not belong in a pack"),
    "an absolute path": (_member("/tmp/outside"), "does not belong in a pack"),
    "a link": (_member("blobs/" + "0" * 64, stat.S_IFLNK | 0o777), "a link or a device"),
    "a blob that nobody names": (_member("blobs/" + "0" * 64), "does not name"),
    "a file twice": (_twice, "twice"),
    "compressed files": (_compress, "compressed"),
}

STATED: dict[str, Tamper] = {
    **{
        name: _metric(name, 0.99)
        for name in ("accuracy", "class_mean", "macro_f1", "worst_group", "nll", "ece", "score")
    },
    "average": lambda f: f.record(lambda r: r.update(ood=0.99)),
    "no average": lambda f: f.record(lambda r: r.update(ood=None)),
    "curve": lambda f: f.record(lambda r: r["curve"][1]["scores"].update(art=1.0)),
    "average of a curve": lambda f: f.record(lambda r: r["curve"][1].update(ood=1.0)),
}
