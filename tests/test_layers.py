"""The floors of the house: a module imports from its own floor and from those below, whenever and
wherever it does so.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: From the ground up. What is imported for annotations alone runs nothing, and may point up.
FLOORS = """
errors identity plain validation
stopping engine storage
tables
plugins
data
backbones
classifier
method
configure
run_spec
results
training
evaluation
fit_setup
task
runs
sweeps
testing
api
console
cli
methods datasets leaderboard
"""
FLOOR = {name: number for number, names in enumerate(FLOORS.split("\n")) for name in names.split()}
#: Folders that know each other only through entry points.
APART = {"methods", "datasets", "leaderboard", "cli"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package, as its place below `bench`."""
    for folder in ("bench", "methods", "datasets", "leaderboard"):
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((*(() if folder == "bench" else (folder,)), *parts)), file


def imported(tree: ast.AST, place: str) -> Iterator[str]:
    """What a module imports of the package when it runs, as places below `bench`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            above = place.split(".")[: -node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join([*above, name]) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bench."):
            yield str(node.module).removeprefix("bench.")
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("bench.")
                for alias in node.names
                if alias.name.startswith("bench.")
            )
        yield from imported(node, place)


def test_no_import_points_to_a_higher_floor() -> None:
    found = []
    for place, file in modules():
        own = place.partition(".")[0]
        for target in (
            imported(ast.parse(file.read_text(encoding="utf-8")), place)
            if place != "__init__"
            else ()
        ):
            other = target.partition(".")[0]
            if FLOOR[other] > FLOOR[own] or (other != own and {own, other} <= APART):
                found.append(f"{place} -> {target}")
    assert not found


def test_no_file_has_more_than_500_lines() -> None:
    folders = ("bench", "methods", "datasets", "leaderboard", "scripts", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    long = {str(f.relative_to(ROOT)) for f in files if len(f.read_text().splitlines()) > 500}
    assert long == set(), "such a file is two files"
