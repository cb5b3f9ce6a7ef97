"""Read the lists that label ImageNet's validation images, which come without class folders."""

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
from .located import NotHere
from .same_file import refuse

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
#: File of the development kit -> limit of its bytes. The files have 0.2 and 0.1 million bytes. The
#: limit of meta.mat is lower, since it is compressed and SciPy unpacks it in memory.
_MOST_BYTES: Final = {_TRUTH: 1 << 24, "meta.mat": 1 << 19}
#: Names of the validation images; the WordNet id is in the copies of Hugging Face.
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})(?:_n\d{8})?$")


def find_ground_truth(folder: Path, images: str, lists: Sequence[str]) -> Path:
    """Return the first of the lists that exists below `folder`.

    Args:
        folder: folder of the dataset.
        images: path of the images, for messages.
        lists: paths of the lists, in order of preference.

    Raises:
        NotHere: none of them exists.
    """
    for name in lists:
        if (folder / name).exists():
            return folder / name
    raise NotHere(
        f"{folder / images} exists, but there is no list of its classes: {', '.join(lists)}"
    )


def read_ground_truth(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the class of every image by its file name without suffix.

    The classes are WordNet ids, names or numbers, as in the list.

    Args:
        path: the development kit (its folder, or `ILSVRC2012_devkit_t12.tar.gz`); Kaggle's
            `LOC_val_solution.csv`; or a text with a class per line, in the order of the sorted file
            names, such as TensorFlow's `imagenet_2012_validation_synset_labels.txt`.
        names: file names of the images, without suffix. `ILSVRC2012_val_00000017` is line 17,
            whichever other images exist. If there are other names, there have to be as many images
            as lines.

    Raises:
        BenchError: the list is not one of these, or the images cannot be matched with its lines.
    """
    try:
        if path.suffix == ".csv":
            lines = csv.DictReader(read_text(path).splitlines())
            rows = [(row["ImageId"], row["PredictionString"].split()[0]) for row in lines]
            class_of = dict(rows)
            if len(class_of) < len(rows):
                often = Counter(name for name, _ in rows)
                repeated = [f"{name} ({token})" for name, token in sorted(rows) if often[name] > 1]
                refuse(repeated, str(path), "listed more than once")
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
    # By the number in the name, so that half a copy keeps its classes: by rank, each image would
    # get the class of another one.
    numbers = [int(match[1]) for name in names if (match := _NUMBERED.match(name))]
    if len(numbers) == len(names) and max(numbers, default=0) <= len(classes):
        return {
            name: classes[number - 1] for name, number in zip(names, numbers, strict=True) if number
        }
    if len(classes) != len(names):
        raise BenchError(
            f"the list has {len(classes)} lines for {len(names)} images, so they cannot be matched",
            where=str(path),
        )
    return dict(zip(sorted(names), classes, strict=True))


def _bounded(file: IO[bytes], name: str) -> bytes:
    """Return the content of a file of the development kit, if it is within its limit."""
    with file:
        data = file.read(_MOST_BYTES[name] + 1)
    if len(data) > _MOST_BYTES[name]:
        raise ValueError(f"{name} is longer than {_MOST_BYTES[name]:,} bytes")
    return data


def _devkit(path: Path) -> list[str]:
    """Return the WordNet id of every validation image, in the order of their numbers."""
    # SciPy is slow to import, and no other list needs it.
    from scipy.io import loadmat

    # Only the two files are read: an archive from elsewhere is never unpacked to disk.
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.name in _MOST_BYTES]
        files = {file.name: _bounded(regular(file).open("rb"), file.name) for file in found}
    else:
        with tarfile.open(regular(path), tarinfo=CheckedTarInfo) as tar:
            members = [
                member for member in tar if member.isreg() and Path(member.name).name in _MOST_BYTES
            ]
            opened = {Path(member.name).name: tar.extractfile(member) for member in members}
            files = {
                name: _bounded(file, name) for name, file in opened.items() if file is not None
            }
    # The kit numbers classes in its own order, which only meta.mat maps to WordNet ids.
    # `loadmat` accepts open files, which its type stubs omit.
    meta = io.BytesIO(files["meta.mat"])
    synsets = loadmat(meta, squeeze_me=True)["synsets"]  # type: ignore[arg-type]
    wordnet = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return [wordnet[int(number)] for number in files[_TRUTH].split()]
