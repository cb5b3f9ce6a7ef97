"""The record of a run: what was asked, what came out, and everything needed to trust or repeat
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA = 1
_ASHA = ", asha"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class SplitMetrics(_Part):
    """Scores of one classifier on one split; accuracies and ECE are shares in [0, 1]."""

    images: int = Field(ge=0)
    score: float = Field(
        ge=0,
        le=1,
        description=(
            "the split's own metric (accuracy unless its card says otherwise); what averages use"
        ),
    )
    metric: str = "accuracy"
    accuracy: float = Field(ge=0, le=1)
    class_mean: float = Field(ge=0, le=1, description="mean over classes of the per-class accuracy")
    macro_f1: float = Field(ge=0, le=1)
    nll: float = Field(description="mean negative log-likelihood, nats")
    ece: float = Field(description="expected calibration error, 15 equal-width bins")
    brier: float = Field(
        description=(
            "mean over images of the squared distance of the probabilities to the one-hot label"
        )
    )
    worst_group: float | None = None
    skipped_unreadable: int = 0


class CurvePoint(_Part):
    """One point of the interpolation curve between the start (alpha 0) and the end (alpha 1) of a
    fit.
    """

    alpha: float
    scores: dict[str, float] = Field(description="split -> score")
    ood: float | None


class RunRecord(_Part):
    """`record.json` of a run folder."""

    record_schema: int = SCHEMA
    status: Literal["started", "done", "failed", "cancelled"]
    method: dict[str, Any] = Field(
        description="identity of the method: name, version, source, parameters"
    )
    label: str = Field(
        description=(
            "short row name: the method and the parameters that differ from the suite's recipe"
        )
    )
    backbone: str
    backbone_sha256: str
    backbone_seen: str = "unknown"
    suite: str
    seed: int
    fit_id: str
    eval_id: str = ""
    pixels: str = ""
    protocol: int = Field(
        default=1,
        description=(
            "version of the engine's arithmetic and rules; runs of two versions are not comparable"
        ),
    )
    limit: int | None = Field(
        default=None,
        description=(
            "images per split at most; such a run is a trial of the machinery, not a result"
        ),
    )
    phase: Literal["final", "search", "external"] = "final"
    source_format: str = Field(
        default="",
        description="of external weights: the repository whose code wrote them; empty: ours",
    )
    data: dict[str, str] = Field(
        default_factory=dict, description="split -> fingerprint of its images and labels"
    )
    metrics: dict[str, SplitMetrics] = Field(
        default_factory=dict, description="split -> metrics; id-val and id-test included"
    )
    projections: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "shift -> how logits over the suite's classes became logits over its own (`masked200`,"
            " ...); none: identity"
        ),
    )
    id_matched: dict[str, SplitMetrics] = Field(
        default_factory=dict,
        description=(
            "shift -> metrics of id-test on the shift's classes alone, under the same projection"
        ),
    )
    relative: dict[str, float] = Field(
        default_factory=dict, description="scores relative to a reference's, such as mCE; percent"
    )
    shifts: list[str] = Field(
        default_factory=list, description="the suite's shifts in the card's order"
    )
    averaged: list[str] = Field(
        default_factory=list, description="the shifts that the OOD average is declared over"
    )
    holes: dict[str, str] = Field(default_factory=dict, description="split -> why it has no result")
    miscounted: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "split (`train` too) -> how many images are here and how many the card states, where"
            " these differ"
        ),
    )
    ignored: dict[str, int] = Field(
        default_factory=dict,
        description=(
            "split (`train` too) -> how many files among its images are none, or lie in no class's"
            " folder; no entry: 0"
        ),
    )
    duplicates: dict[str, int] = Field(
        default_factory=dict,
        description=(
            "split -> how many of its images repeat another of it byte by byte, and `split in"
            " train` (or in id-val) -> how many are also there; no entry: not compared (`bench"
            " check SUITE` does it)"
        ),
    )
    ood: float | None = Field(
        default=None,
        description="unweighted mean of the scores on `averaged`; None while one is missing",
    )
    factors: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="shift -> its declared factors"
    )
    selection: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="what was chosen on id-val, and among how many"
    )
    search_trials: int = Field(
        default=0,
        description=(
            "trials in which the parameters were chosen on id-val; 0 is the recipe as it stands"
        ),
    )
    search_seconds: float | None = Field(default=None, description="training time of those trials")
    search_rule: str = Field(
        default="",
        description="how they were drawn: `random`, `grid`, `tpe`",
    )
    search_cut_short: bool = Field(
        default=False, description="most trials were cut short: ASHA, by the order of results"
    )
    facts: dict[str, float] = Field(
        default_factory=dict, description="measured constants, such as teacher_ms"
    )
    id_val_seen: bool = Field(
        default=False, description="the backbone was pre-trained on the suite's own training images"
    )
    temperature: float | None = Field(
        default=None,
        description="softmax temperature with the least NLL on id-val; earlier runs: None",
    )
    curve: list[CurvePoint] = Field(default_factory=list)
    fit_seconds: float | None = Field(
        default=None,
        description="wall time of training, of all nested fits, whenever they were made",
    )
    eval_seconds: float | None = None
    peak_memory_mb: float | None = None
    started: str = ""
    finished: str = ""
    error: str = ""
    traceback: str = Field(default="", description="of an error that nobody expected")
    identity: dict[str, Any] = Field(
        default_factory=dict,
        description="what the ids are hashes of: `fit` of fit_id, `evaluation` with it of eval_id",
    )
    origin: dict[str, str] = Field(
        default_factory=dict,
        description="the pack that a run was merged from; empty for a run made here",
    )
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("method")
    @classmethod
    def _has_a_name(cls, method: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(method.get("name"), str) or not isinstance(
            method.get("parameters", {}), dict
        ):
            raise ValueError("a method has a name, and a table of parameters")
        return method

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, content: Any) -> Any:
        """They said `random, asha` of a search that was cut short."""
        if isinstance(content, dict) and str(content.get("search_rule", "")).endswith(_ASHA):
            rule = content["search_rule"].removesuffix(_ASHA)
            return content | {"search_rule": rule, "search_cut_short": True}
        return content

    @field_validator("selection")
    @classmethod
    def _is_counted(cls, selection: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not all(isinstance(chosen.get("among", 0), int) for chosen in selection.values()):
            raise ValueError("a selection says among how many it chose")
        return selection

    @field_validator("provenance")
    @classmethod
    def _names_versions(cls, provenance: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(provenance.get("versions") or {}, dict):
            raise ValueError("the versions of a provenance are a table")
        return provenance

    @field_validator("origin")
    @classmethod
    def _names_a_pack(cls, origin: dict[str, str]) -> dict[str, str]:
        # The digest becomes a folder's name.
        if origin and not (
            "pack" in origin and re.fullmatch("[0-9a-f]{12,64}", origin.get("digest", ""))
        ):
            raise ValueError("what a run was merged from has the pack's name and its hash")
        return origin

    @property
    def precedence(self) -> tuple[bool, str, str]:
        """Of several done runs of one id the greatest counts: the store's own before those from
        packs, then the newest.
        """
        return not self.origin, self.finished or self.started, self.origin.get("digest", "")

    def average(self, scores: Mapping[str, float]) -> float | None:
        """Unweighted mean of scores by split over the declared shifts; None while one of them is
        missing.
        """
        if not self.averaged or any(name not in scores for name in self.averaged):
            return None
        return float(np.mean([scores[name] for name in self.averaged]))

    def scores(self) -> dict[str, float]:
        """Split -> score."""
        return {name: metrics.score for name, metrics in self.metrics.items()}

    def duplicates_told(self) -> list[str]:
        """A sentence on every place where images are equal."""
        told = []
        for where, count in self.duplicates.items():
            split, _, other = where.partition(" in ")
            how = f"are also in {other}" if other else "repeat another of it"
            told += [f"{split}: {count} images {how}, byte by byte"] if count else []
        return told
