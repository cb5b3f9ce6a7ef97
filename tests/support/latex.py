"""A check that a LaTeX table is complete and escaped."""

from __future__ import annotations

import re


def check_latex(text: str) -> None:
    """What a compiler would trip over: unbalanced braces, rows of other lengths, characters that
    mean something.
    """
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[\\&%$#_{}]", "", code)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", bare) == re.findall(r"\\end\{(\w+)\}", bare)[::-1]
    found, *_ = re.findall(r"\\begin\{tabular\}\{(.+)\}", code)
    layout = re.sub(r">\{.*?\}p\{.*?\}", "l", found)
    columns = len(layout)
    rows = [line for line in code.splitlines() if line.endswith(r"\\")]
    assert rows
    assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    words = re.sub(r"\\(begin|end|resizebox)\{.*|\$[^$]*\$", "", bare)
    assert not re.search(r"[#%_^~<>|]", words)
