"""Say in plain English why pydantic refused a value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

#: pydantic's name of an error -> what the value must be. `{...}` are pydantic's own facts.
_REASONS = {
    "missing": "is missing",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "is_instance_of": "must be a method",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "needs at least {min_length} value(s)",
    "too_long": "has more than {max_length} values",
    "string_too_short": "needs at least {min_length} character(s)",
    "string_too_long": "has more than {max_length} characters",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "has the unknown kind {tag}; known: {expected_tags}",
    "union_tag_not_found": "needs a `kind`",
}
#: Problems that are reported at once; a stranger's card may have thousands.
_MOST = 8
#: Parts of a place that are names of types: pydantic adds them where a field takes several.
_TYPE = re.compile(
    r"constrained-\w+|int|float|str|bool|none|list|tuple|dict|(literal|function|tuple|list|lax|"
    r"is-instance|tagged|chain|nullable|json)\b.*[\[(].*"
)


def problems(
    error: ValidationError, model: type[BaseModel], *, whole: str = "", given: bool = False
) -> str:
    """Return what is wrong, as `place: reason` for every field, separated by semicolons.

    Args:
        error: of validating `model`.
        model: whose fields an unknown one is compared with.
        whole: the name of the value itself, for problems that no field has alone.
        given: whether to add the values that were given.
    """
    # A field that takes one of several types has one error per type: they are alternatives.
    reasons: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for one in error.errors():
        place = ".".join(str(part) for part in one["loc"] if not _is_type(part))
        reason = _reason(one, model)
        if reason not in reasons.setdefault(place, []):
            reasons[place].append(reason)
        values[place] = one["input"]
    texts = []
    for place, why in reasons.items():
        text = " or ".join([why[0], *(again.removeprefix("must be ") for again in why[1:])])
        if given and why != ["is missing"]:
            text += f" (given: {values[place]!r})"
        texts.append(f"{place or whole}: {text}".removeprefix(": "))
    if len(texts) > _MOST:
        texts[_MOST:] = [f"and {len(texts) - _MOST} more"]
    return "; ".join(texts)


def _is_type(part: int | str) -> bool:
    return isinstance(part, str) and _TYPE.fullmatch(part) is not None


def _reason(one: Mapping[str, Any], model: type[BaseModel]) -> str:
    if one["type"] == "extra_forbidden":
        *path, name = (part for part in one["loc"] if isinstance(part, str) and not _is_type(part))
        near = difflib.get_close_matches(name, set(_fields(model, path)), n=1, cutoff=0.5)
        return "is unknown" + (f"; did you mean `{near[0]}`?" if near else "")
    facts = {key: _shown(value) for key, value in one.get("ctx", {}).items()}
    if one["type"] in _REASONS:
        return _REASONS[one["type"]].format(**facts)
    message = str(one["msg"]).removeprefix("Value error, ")
    return message.replace("Input should be", "must be").replace("a valid ", "a ")


def _shown(value: Any) -> str:
    # pydantic quotes the choices: 'flip' or 'none'.
    if isinstance(value, str):
        return value.replace("'", "")
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _fields(model: Any, path: list[str]) -> Iterator[str]:
    """Yield the names of the fields at a place within a model, whichever of its types is meant."""
    for kind in _models(model):
        if not path:
            yield from kind.model_fields
        elif path[0] in kind.model_fields:
            yield from _fields(kind.model_fields[path[0]].annotation, path[1:])


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
