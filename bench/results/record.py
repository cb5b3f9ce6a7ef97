"""Define the record of a run: its settings, its results, and how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: Version of the record format. A new field with a default needs no new version, since readers
#: ignore what they do not know.
SCHEMA = 1
#: How earlier versions marked a search that ASHA cut short, in `search_rule`.
_ASHA = ", asha"


class _RecordModel(BaseModel):
    # Records and packs of other versions may have more fields.
    model_config = ConfigDict(extra="ignore")


class SplitMetrics(_RecordModel):
    """The scores of one classifier on one split; accuracies and ECE are shares in [0, 1]."""

    images: int = Field(ge=0)
    score: float = Field(
        ge=0,
        le=1,
        description=(
            "the split's metric (accuracy unless its card says otherwise), which is averaged"
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
            "mean over images of the squared distance between probabilities and one-hot label"
        )
    )
    worst_group: float | None = None
    skipped_unreadable: int = 0


class CurvePoint(_RecordModel):
    """A point of the interpolation curve from the start (alpha 0) to the end (alpha 1) of a fit."""

    alpha: float
    scores: dict[str, float] = Field(description="split -> score")
    ood: float | None


class RunRecord(_RecordModel):
    """The content of a run's `record.json`.

    Field names are a file format: they stay as they are, even where the code now has a better word.
    Most fields have defaults, so that records of earlier versions can be read.
    """

    record_schema: int = SCHEMA
    status: Literal["started", "done", "failed", "cancelled"]
    method: dict[str, Any] = Field(
        description="the method's identity: name, version, source, parameters"
    )
    label: str = Field(
        description=(
            "name of the row: the method and the parameters that differ from the suite's recipe"
        )
    )
    backbone: str
    backbone_sha256: str
    backbone_seen: str = "unknown"
    suite: str
    seed: int
    # Hashes of `identity`: of what was trained, and of what was evaluated with it.
    fit_id: str
    eval_id: str = ""
    pixels: str = ""
    protocol: int = Field(
        default=1,
        description=("version of the engine's arithmetic and rules; versions are not comparable"),
    )
    limit: int | None = Field(
        default=None,
        description=(
            "images per split at most; such a run only tries things out and is not a result"
        ),
    )
    phase: Literal["final", "search", "external"] = "final"
    source_format: str = Field(
        default="",
        description=(
            "repository whose code wrote external weights; empty for ShiftBench's own format"
        ),
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
            "shift -> projection from the suite's classes to the shift's own (`masked200`, ...);"
            " no entry: identity"
        ),
    )
    id_matched: dict[str, SplitMetrics] = Field(
        default_factory=dict,
        description=(
            "shift -> metrics of id-test on the shift's classes only, under the same projection"
        ),
    )
    relative: dict[str, float] = Field(
        default_factory=dict,
        description="scores relative to a reference model's, such as mCE; percent",
    )
    shifts: list[str] = Field(
        default_factory=list, description="the suite's shifts in the card's order"
    )
    # Recorded and not read from the card later: packs are compared without the card at hand.
    averaged: list[str] = Field(
        default_factory=list, description="shifts that the suite's card includes in the OOD average"
    )
    holes: dict[str, str] = Field(default_factory=dict, description="split -> why it has no result")
    miscounted: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "split (`train` too) -> number of images found and number that the card states, where"
            " they differ"
        ),
    )
    ignored: dict[str, int] = Field(
        default_factory=dict,
        description=(
            "split (`train` too) -> number of files in its folders that are not images or belong to"
            " no class; no entry: 0"
        ),
    )
    duplicates: dict[str, int] = Field(
        default_factory=dict,
        description=(
            "split -> number of its images that equal another of them byte by byte, and `split in"
            " train` (or in id-val) -> number that are also there; no entry: not compared (`bench"
            " check SUITE` compares)"
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
        default_factory=dict,
        description="what was selected on id-val, and among how many candidates",
    )
    search_trials: int = Field(
        default=0,
        description=(
            "number of trials from which the parameters were chosen on id-val; 0: the recipe's"
        ),
    )
    search_seconds: float | None = Field(default=None, description="training time of those trials")
    search_rule: str = Field(
        default="",
        description="how trials were sampled: `random`, `grid` or `tpe`",
    )
    search_cut_short: bool = Field(
        default=False,
        description="whether most trials were stopped early by ASHA, in the order of their results",
    )
    facts: dict[str, float] = Field(
        default_factory=dict, description="measured constants, such as teacher_ms"
    )
    id_val_seen: bool = Field(
        default=False,
        description="whether the backbone was pre-trained on the suite's own training images",
    )
    temperature: float | None = Field(
        default=None,
        description="softmax temperature with the lowest NLL on id-val; earlier runs: None",
    )
    curve: list[CurvePoint] = Field(default_factory=list)
    fit_seconds: float | None = Field(
        default=None,
        description="wall time of training, including all nested fits, whenever they were made",
    )
    eval_seconds: float | None = None
    peak_memory_mb: float | None = None
    started: str = ""
    finished: str = ""
    error: str = ""
    traceback: str = Field(default="", description="of an unexpected error")
    identity: dict[str, Any] = Field(
        default_factory=dict,
        description="what the ids hash: fit_id `fit`, eval_id the fit_id and `evaluation`",
    )
    origin: dict[str, str] = Field(
        default_factory=dict,
        description="the pack that a run was merged from; empty for a run made here",
    )
    provenance: dict[str, Any] = Field(default_factory=dict)

    # Records arrive in packs from strangers. What the code below and the leaderboard index into is
    # therefore checked here, so that a bad record is an error on reading and not a crash later.

    @field_validator("method")
    @classmethod
    def _has_a_name(cls, method: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(method.get("name"), str) or not isinstance(
            method.get("parameters", {}), dict
        ):
            raise ValueError("a method needs a name and a table of parameters")
        return method

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, content: Any) -> Any:
        # They wrote `random, asha` for a search that was cut short.
        if isinstance(content, dict) and str(content.get("search_rule", "")).endswith(_ASHA):
            rule = content["search_rule"].removesuffix(_ASHA)
            return content | {"search_rule": rule, "search_cut_short": True}
        return content

    @field_validator("selection")
    @classmethod
    def _is_counted(cls, selection: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not all(isinstance(chosen.get("among", 0), int) for chosen in selection.values()):
            raise ValueError("the number of candidates of a selection is not an integer")
        return selection

    @field_validator("provenance")
    @classmethod
    def _names_versions(cls, provenance: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(provenance.get("versions") or {}, dict):
            raise ValueError("the versions of a provenance are not a table")
        return provenance

    @field_validator("origin")
    @classmethod
    def _names_a_pack(cls, origin: dict[str, str]) -> dict[str, str]:
        # The digest becomes a folder's name, so it must not contain path separators or dots.
        if origin and not (
            "pack" in origin and re.fullmatch("[0-9a-f]{12,64}", origin.get("digest", ""))
        ):
            raise ValueError("the origin of a merged run needs the pack's name and its hash")
        return origin

    @property
    def precedence(self) -> tuple[bool, str, str]:
        """Return a sort key for finished runs of one id, of which the greatest counts.

        The store's own run comes before those from packs, then the newest.
        """
        # The digest breaks ties, so that the order of reading does not matter.
        return not self.origin, self.finished or self.started, self.origin.get("digest", "")

    def average(self, scores: Mapping[str, float]) -> float | None:
        """Return the mean of the scores over the averaged shifts; None while one is missing."""
        # A mean over the shifts that happen to be there would not be comparable with other runs.
        if not self.averaged or any(name not in scores for name in self.averaged):
            return None
        return float(np.mean([scores[name] for name in self.averaged]))

    def scores(self) -> dict[str, float]:
        """Return the score of every split."""
        return {name: metrics.score for name, metrics in self.metrics.items()}

    def duplicates_reported(self) -> list[str]:
        """Return one sentence for every split with duplicate images."""
        messages = []
        for where, count in self.duplicates.items():
            split, _, other = where.partition(" in ")
            how = f"are also in {other}" if other else "repeat another of it"
            messages += [f"{split}: {count} images {how}, byte by byte"] if count else []
        return messages
