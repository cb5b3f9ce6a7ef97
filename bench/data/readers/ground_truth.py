"""The classes of ImageNet's validation images, which lie in one flat archive or folder and are
labelled by a list beside it.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from ...errors import BenchError
from ...storage.files import read_text, regular
from .archive import CheckedTarInfo
from .here import NotHere
from .same_file import refuse

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
#: Bytes of the development kit's two files at most. They have 0.2 and 0.1 million; the second is
#: compressed in itself.
_MOST_BYTES: Final = {_TRUTH: 1 << 24, "meta.mat": 1 << 19}
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})(?:_n\d{8})?$")


def find_truth(folder: Path, images: str, lists: Sequence[str]) -> Path:
    """The first of the lists that exists below `folder`.

    Args:
        images: what it gives the classes of, for messages.

    Raises:
        NotHere: there is none.
    """
    for name in lists:
        if (folder / name).exists():
            return folder / name
    raise NotHere(f"{folder / images} is here, but no list of its classes: {', '.join(lists)}")


def read_truth(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Class (WordNet id, name or number, as the list has it) of every image, by its file name
    without suffix.

    Args:
        path: the development kit (its folder, or `ILSVRC2012_devkit_t12.tar.gz`), whose ground
            truth numbers classes in an order of its own that its meta.mat explains; Kaggle's
            `LOC_val_solution.csv`; or a text with a class per line, in the order of the sorted file
            names, such as TensorFlow's `imagenet_2012_validation_synset_labels.txt`.
        names: file names of the images, without suffix. `ILSVRC2012_val_00000017` is line 17,
            whichever others are there; of other names there have to be as many as lines.

    Raises:
        BenchError: the list is not one of these, or which line is which image cannot be told.
    """
    try:
        if path.suffix == ".csv":
            lines = csv.DictReader(read_text(path).splitlines())
            rows = [(row["ImageId"], row["PredictionString"].split()[0]) for row in lines]
            class_of = dict(rows)
            if len(class_of) < len(rows):
                often = Counter(name for name, _ in rows)
                told = [f"{name} ({token})" for name, token in sorted(rows) if often[name] > 1]
                refuse(told, str(path), "lines are of an image that another is of, too")
            return class_of
        classes = (
            _devkit(path)
            if path.is_dir() or path.name.endswith((".tar.gz", ".tgz"))
            else read_text(path).split()
        )
    except (
        OSError,
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
        zlib.error,
        tarfile.TarError,
    ) as error:
        raise BenchError(f"the list of classes cannot be read: {error}", where=str(path)) from error
    numbers = [int(match[1]) for name in names if (match := _NUMBERED.match(name))]
    if len(numbers) == len(names) and max(numbers, default=0) <= len(classes):
        return {
            name: classes[number - 1] for name, number in zip(names, numbers, strict=True) if number
        }
    if len(classes) != len(names):
        raise BenchError(
            f"the list has {len(classes)} lines for {len(names)} images: which line is which?",
            where=str(path),
        )
    return dict(zip(sorted(names), classes, strict=True))


def _start(file: IO[bytes], name: str) -> bytes:
    """All of a file that is not too long."""
    with file:
        data = file.read(_MOST_BYTES[name] + 1)
    if len(data) > _MOST_BYTES[name]:
        raise ValueError(f"{name} is longer than {_MOST_BYTES[name]:,} bytes")
    return data


def _devkit(path: Path) -> list[str]:
    from scipy.io import loadmat

    if path.is_dir():
        found = [file for file in path.rglob("*") if file.name in _MOST_BYTES]
        files = {file.name: _start(regular(file).open("rb"), file.name) for file in found}
    else:
        with tarfile.open(regular(path), tarinfo=CheckedTarInfo) as tar:
            members = [
                member for member in tar if member.isreg() and Path(member.name).name in _MOST_BYTES
            ]
            opened = {Path(member.name).name: tar.extractfile(member) for member in members}
            files = {name: _start(file, name) for name, file in opened.items() if file is not None}
    # SciPy reads open files too, which its type stubs do not know.
    synsets = loadmat(io.BytesIO(files["meta.mat"]), squeeze_me=True)["synsets"]  # type: ignore[arg-type]
    wordnet = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return [wordnet[int(number)] for number in files[_TRUTH].split()]
