"""The listing of an image folder: names and sizes of its files, none of which is opened."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from . import image_bytes
from .folder import COLUMNS, _walk
from .image_bytes import EMPTY, OTHER, SYSTEM
from .stored import Progress


def list_folder(root: Path, part: str, *, cache: Path, progress: Progress | None = None) -> pd.DataFrame:
    """Every file below `root/part`, each once, sorted by key, judged by its name and size alone.

    Returns:
        The columns of `folder.COLUMNS` with `sha256` and `format` empty.

    Raises:
        BenchError: a folder cannot be read, or a name is not valid Unicode.
    """
    prefix = "" if part in ("", ".") else part.strip("/") + "/"
    rows = []
    for done, file in enumerate(_walk(root / part), start=1):
        top = file.relative.partition("/")[0] if "/" in file.relative else ""
        problem = SYSTEM if file.system else "" if image_bytes.has_image_suffix(file.relative) else OTHER
        if not file.size and not problem:
            problem = EMPTY
        rows.append((prefix + file.relative, top, file.size, file.mtime_ns, file.ctime_ns, 0, "", "", problem))
        if progress is not None and done % 10_000 == 0:
            progress(f"listing {part}", done, done)
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("key", ignore_index=True)
