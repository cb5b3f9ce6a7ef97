"""Tables for papers: LaTeX with booktabs that compiles whatever stands in a cell, with any of the usual engines."""

from __future__ import annotations

import re
import unicodedata

from ..plain import plain
from .table import HOLE, Column, Table, for_people

_SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    HOLE: "--",
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
    # A star or bracket after a row's `\\` would be read as that command's argument, and `?` with a backtick as a Spanish
    # question mark; braces keep them text everywhere.
    "*": "{*}",
    "[": "{[}",
    "]": "{]}",
    "`": "{`}",
}
#: Combining character -> the command that sets it on a letter, in every font encoding.
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u ", "\u0307": ".", "\u0308": '"',
    "\u030a": "r ", "\u030b": "H ", "\u030c": "v ", "\u0327": "c ",
}  # fmt: skip
#: The Greek letters that LaTeX has a command for: not those that look like Latin ones, nor the archaic ones.
_GREEK = frozenset((
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "alpha", "beta", "gamma", "delta",
    "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi",
    "chi", "psi", "omega",
))  # fmt: skip
#: Cells of a text column longer than this are broken into lines.
_LONG = 28


def latex_text(text: str) -> str:
    """Text as LaTeX sets it in every encoding; a character that pdfLaTeX has no letter for stands as its number, `U+4E2D`."""
    apart = re.sub(r"([-'])(?=\1)", "\\1\0", unicodedata.normalize("NFC", text).replace("\0", ""))
    return "".join("{}" if c == "\0" else _character(c) for c in apart)  # two hyphens are no dash


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
        name = greek[2].replace("LAMDA", "LAMBDA")  # Unicode's spelling
        name = name.lower() if greek[1] == "SMALL" else name.title()
        if name in _GREEK:
            return rf"$\{name}$"
    return rf"\texttt{{U+{ord(c):04X}}}"


def latex(table: Table) -> str:
    """The table; as a float with its caption if it has one, made smaller where it is wider than the text.

    Columns that print has no room for (`Column.printed`) are named in a comment.
    """
    columns, titles, rows = for_people(table)
    kept = [i for i, column in enumerate(columns) if column.printed]
    shown = [columns[i] for i in kept]
    wide = [max((len(line[i]) for line in rows), default=0) > _LONG for i in kept]
    lines = [
        r"\begin{tabular}{" + "".join(map(_alignment, shown, wide)) + "}",
        r"\toprule",
        " & ".join(latex_text(titles[i]) for i in kept) + r" \\",
        r"\midrule",
        *(
            " & ".join(_cell(columns[i], line[i], (number, columns[i].key) in table.bold) for i in kept) + r" \\"
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
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *lines[:-1],
            lines[-1] + "}",
            r"\end{table}",
        ]
    elif table.title:
        lines = [f"% {plain(table.title)}", *lines]
    left_out = [title for title, column in zip(titles, columns, strict=True) if not column.printed]
    comments = [f"columns left out, which md, csv and json have: {', '.join(left_out)}"] if left_out else []
    return "\n".join([*lines, *(f"% {plain(note)}" for note in (*comments, *table.notes))]) + "\n"


def _alignment(column: Column, wide: bool) -> str:
    if column.kind != "text":
        return "r"
    return r">{\raggedright\arraybackslash}p{0.34\linewidth}" if wide else "l"


def _cell(column: Column, shown: str, bold: bool) -> str:
    if column.kind == "text":
        return rf"\textbf{{{latex_text(shown)}}}" if bold else latex_text(shown)
    value, *behind = re.split(r" (?=±|\[)", shown, maxsplit=1)
    text = _with_minus(value)
    spread = "".join(rf" {{\scriptsize {_with_minus(part)}}}" for part in behind)
    return (rf"\textbf{{{text}}}" if bold else text) + spread


def _with_minus(number: str) -> str:
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex_text(number))  # a hyphen is no minus
