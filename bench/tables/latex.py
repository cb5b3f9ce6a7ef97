"""Write a table in LaTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..plain import plain

if TYPE_CHECKING:
    from .table import Column, Table

#: How people see a missing value. csv has an empty field, json null.
MISSING = "\u2013"
#: Character -> LaTeX. Beyond the characters with a meaning in LaTeX, those that names of methods
#: and authors contain and that an old encoding of pdfLaTeX lacks or sets as another character.
_SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    MISSING: "--",
    "\u2014": "---",
    "·": r"$\cdot$",
    "\u00d7": r"$\times$",
    "\u2212": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    "…": r"\ldots{}",
    "ß": r"{\ss}",
    "ø": r"{\o}",
    "Ø": r"{\O}",
    "æ": r"{\ae}",
    "Æ": r"{\AE}",
    "ł": r"{\l}",
    "Ł": r"{\L}",
    "\u0131": r"{\i}",
    # LaTeX reads a star or bracket after the `\\` of a row as an argument of that command, and a
    # question mark with a backtick as an inverted question mark. Braces prevent both.
    "*": "{*}",
    "[": "{[}",
    "]": "{]}",
    "`": "{`}",
}
#: Combining character -> the accent command for it, which works in every font encoding.
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u ",
    "\u0307": ".", "\u0308": '"',
    "\u030a": "r ", "\u030b": "H ", "\u030c": "v ", "\u0327": "c ",
}  # fmt: skip
#: The Greek letters that LaTeX has a command for: not those that look like Latin letters, and not
#: the archaic ones.
_GREEK = frozenset((
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
    "alpha", "beta", "gamma", "delta",
    "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "pi", "rho",
    "sigma", "tau", "upsilon", "phi",
    "chi", "psi", "omega",
))  # fmt: skip
#: A text column with a cell of more characters gets a fixed width, in which LaTeX breaks lines.
_LONG = 28


def latex_text(text: str) -> str:
    """Escape a text for LaTeX; a character without a glyph in pdfLaTeX becomes `U+4E2D`."""
    # LaTeX makes a dash of two hyphens and a quotation mark of two apostrophes; `{}` between them
    # prevents it. NUL marks the places, as it can be in no name.
    apart = re.sub(r"([-'])(?=\1)", "\\1\0", unicodedata.normalize("NFC", text).replace("\0", ""))
    return "".join("{}" if c == "\0" else _character(c) for c in apart)


def _character(c: str) -> str:
    if c in _SPECIAL:
        return _SPECIAL[c]
    if c.isascii():
        return c
    apart = unicodedata.normalize("NFD", c)
    if len(apart) == 2 and apart[0].isascii() and apart[1] in _ACCENTS:
        return rf"{{\{_ACCENTS[apart[1]]}{apart[0]}}}"
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(c, ""))
    if greek:
        # Unicode spells it LAMDA.
        name = greek[2].replace("LAMDA", "LAMBDA")
        name = name.lower() if greek[1] == "SMALL" else name.title()
        if name in _GREEK:
            return rf"$\{name}$"
    return rf"\texttt{{U+{ord(c):04X}}}"


def latex(
    table: Table, columns: Sequence[Column], titles: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """Return a table as LaTeX: a float if it has a caption, scaled down if wider than the text.

    Columns that are not printed (`Column.printed`) are named in a comment.

    Args:
        table: title, caption, notes and bold cells.
        columns: those that people see.
        titles: their headings.
        rows: texts of the cells.
    """
    selected = [i for i, column in enumerate(columns) if column.printed]
    shown = [columns[i] for i in selected]
    wide = [max((len(line[i]) for line in rows), default=0) > _LONG for i in selected]
    lines = [
        r"\begin{tabular}{" + "".join(map(_alignment, shown, wide)) + "}",
        r"\toprule",
        " & ".join(latex_text(titles[i]) for i in selected) + r" \\",
        r"\midrule",
        *(
            " & ".join(
                _cell(columns[i], line[i], (number, columns[i].key) in table.bold) for i in selected
            )
            + r" \\"
            for number, line in enumerate(rows)
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if table.caption:
        lines = [
            r"% needs \usepackage{booktabs, array, graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(plain(table.caption))}}}",
            r"\par\smallskip\small\setlength{\tabcolsep}{4pt}",
            # Only ever smaller: a narrow table scaled up would have larger type than the text.
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *lines[:-1],
            lines[-1] + "}",
            r"\end{table}",
        ]
    elif table.title:
        lines = [f"% {plain(table.title)}", *lines]
    left_out = [title for title, column in zip(titles, columns, strict=True) if not column.printed]
    comments = (
        [f"columns left out, which md, csv and json have: {', '.join(left_out)}"]
        if left_out
        else []
    )
    return "\n".join([*lines, *(f"% {plain(note)}" for note in (*comments, *table.notes))]) + "\n"


def _alignment(column: Column, wide: bool) -> str:
    if column.kind != "text":
        return "r"
    return r">{\raggedright\arraybackslash}p{0.34\linewidth}" if wide else "l"


def _cell(column: Column, shown: str, bold: bool) -> str:
    if column.kind == "text":
        return rf"\textbf{{{latex_text(shown)}}}" if bold else latex_text(shown)
    # The spread after the value is set smaller, and never bold.
    value, *after = re.split(r" (?=±|\[)", shown, maxsplit=1)
    text = _with_minus(value)
    spread = "".join(rf" {{\scriptsize {_with_minus(part)}}}" for part in after)
    return (rf"\textbf{{{text}}}" if bold else text) + spread


def _with_minus(number: str) -> str:
    # LaTeX sets a hyphen outside of mathematics as a hyphen, which is shorter than a minus sign.
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex_text(number))
