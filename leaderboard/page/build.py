"""A document as one HTML file that carries everything it needs and may open no connection."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from string import Template
from typing import Any

#: In the order in which they are read; each says in its first line what it is for.
_SCRIPTS = ("elements.js", "state.js", "figures.js", "scatter.js", "table.js", "comparison.js", "drawer.js", "main.js")


def page(document: dict[str, Any], *, live: bool = False) -> str:
    """The page of a document.

    Scripts are allowed by their hashes alone, so that nothing else that looks like one can run, wherever it comes from.

    Args:
        live: the page listens to the server it came from and loads anew when that says so.
    """
    import vl_convert

    own = [_read(name) for name in (*_SCRIPTS, *(["live.js"] if live else []))]
    scripts = [vl_convert.javascript_bundle(), *own]  # type: ignore[call-arg]  # its stub misses the default
    return Template(_read("page.html")).substitute(
        policy=policy(scripts, live=live),
        version=document["version"],
        style=_read("style.css"),
        document=embedded(document),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def policy(scripts: list[str], *, live: bool = False) -> str:
    """A Content-Security-Policy under which these inline scripts run and nothing is fetched."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(document: dict[str, Any]) -> str:
    """JSON that a script element can hold: nothing in it ends the element or opens a comment."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))  # what is not ASCII is an escape already
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@lru_cache
def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
