"""What pydantic refuses is said in plain English, with the field, the reason and what was meant."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.validation import problems


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str
    count: int = Field(default=1, ge=1)


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = Field(default=0.1, gt=0)
    mode: Literal["flip", "none"] = "flip"
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["id-val"] = 0.5
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    parts: list[Part] = []
    on: bool = True


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rate": "fast"}, "rate: must be a number"),
        ({"rate": 0}, "rate: must be greater than 0"),
        ({"mode": "turn"}, "mode: must be flip or none"),
        ({"alpha": "best"}, "alpha: must be a number or id-val"),
        ({"seeds": 3}, "seeds: must be a list"),
        ({"seeds": []}, "seeds: needs at least 1 value(s)"),
        ({"seeds": [0.5]}, "seeds.0: must be a whole number"),
        ({"on": "perhaps"}, "on: must be true or false"),
        ({"parts": [{}]}, "parts.0.path: is missing"),
        ({"parts": [{"path": "x", "count": 0}]}, "parts.0.count: must be at least 1"),
        ({"parts": [{"path": "x", "cuont": 2}]}, "cuont: is unknown; did you mean `count`?"),
        ({"raet": 1}, "raet: is unknown; did you mean `rate`?"),
        ({"parts": ["x"]}, "parts.0: must be a table"),
    ],
)
def test_reasons(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(values)
    text = problems(error.value, Whole)
    assert expected in text
    for word in ("Input", "valid", "constrained", "literal[", "extra", "permitted"):
        assert word not in text


def test_a_given_value_is_shown_and_many_problems_are_counted() -> None:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate({"rate": -1, **{f"unknown{i}": i for i in range(20)}})
    assert "(given: -1)" in problems(error.value, Whole, given=True)
    assert problems(error.value, Whole).endswith("and 13 more")
