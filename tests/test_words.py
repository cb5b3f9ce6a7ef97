"""One word for one thing: words that this project once used for a term of the field stay out.

`docs` and messages are plain English; the list says what is written instead. Names of what is on
disk (keys of records, packs and boards) keep theirs, since files of earlier versions have them.
"""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Old word -> what is written instead, in names.
NAMES = {
    "told": "reported",
    "untold": "unreported",
    "said": "reported",
    "kept": "cached, saved",
    "hole": "missing",
    "holes": "missing",
    "asked": "requested",
    "beside": "next_to, relative_to",
    "drawn": "sampled",
    "draw": "sample",
    "draws": "samples",
    "yardstick": "reference",
    "yardsticks": "references",
    "picture": "image",
    "pictures": "images",
    "fate": "status",
    "lies": "is located",
    "mend": "fix",
    "learner": "train_state",
    "anywhere": "any_rank",
    "stages": "dependencies",
    "truths": "true_labels",
    "headline": "summary",
    "statement": "claim",
    "statements": "claims",
}
#: The same for what people read: messages, docstrings, comments and pages.
PROSE = {
    r"\b(un)?told\b": "reported, called",
    r"\bsaid\b": "reported, stated",
    r"\bkept\b": "saved, cached",
    r"\bholes?\b": "missing",
    r"\basked\b": "requested",
    r"\bbeside\b": "next to, relative to",
    r"\byardsticks?\b": "reference",
    r"\bpictures?\b": "image, figure",
    r"\bfates?\b": "status",
    r"\blies\b": "is located, is",
    r"\bmend(s|ed)?\b": "fix",
    r"\b(the|an?|each|every|one|no|bootstrap|random|\d+) draws?\b": "sample",
    r"\bheadlines?\b": "summary",
    r"\bdata[ -]sets?\b": "dataset",
}
#: A field of the record, which earlier files have, and names of Pillow.
OTHERS = {"holes", "ImageDraw", "Draw"}


def python_files() -> list[Path]:
    # The captions that mini-clip was trained on are data.
    return [
        file
        for folder in ("bench", "methods", "datasets", "leaderboard", "scripts")
        for file in sorted((ROOT / folder).rglob("*.py"))
        if file.name != "mini_captions.py"
    ]


def pages() -> list[Path]:
    return [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]


def prose(text: str) -> list[str]:
    """Old words in a text; what stands in backticks or quotes is a name or a value."""
    text = re.sub(r"`[^`\n]*`|\"[^\"\s]*\"|'[^'\s]*'", "", text)
    found = [(rule, hit[0]) for rule in PROSE for hit in re.finditer(rule, text, re.IGNORECASE)]
    return [f"{hit}: write {PROSE[rule]}" for rule, hit in found]


def old_words(source: str) -> list[str]:
    """Old words in Python code, with their lines."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.NAME and token.string not in OTHERS:
            words = re.split(r"_|(?<=[a-z])(?=[A-Z])", token.string)
            found += [
                f"{line}: {token.string}: write {NAMES[word.lower()]}"
                for word in words
                if word.lower() in NAMES
            ]
            if re.search(r"data_set(s|\b)|DataSet", token.string):
                found.append(f"{line}: {token.string}: write dataset")
        # A string without a space is a key, a name or an option.
        elif token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and " " in token.string.strip()
        ):
            found += [f"{line}: {hit}" for hit in prose(token.string)]
    return found


@pytest.mark.parametrize("file", python_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_code_is_written_in_the_words_of_the_field(file: Path) -> None:
    assert old_words(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_written_in_the_words_of_the_field(page: Path) -> None:
    assert prose(page.read_text(encoding="utf-8")) == []


def test_an_old_word_is_found_in_names_and_messages() -> None:
    source = 'kept = 1\nfix = f"the run was told {kept} times"\nrecord.holes = "kept"\n'
    assert old_words(source) == [
        "1: kept: write cached, saved",
        "2: told: write reported, called",
        "2: kept: write saved, cached",
    ]
