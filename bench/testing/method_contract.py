"""Checks of a method: it fits, repeats, resumes, reloads, refuses, and opens no test image."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from ..classifier import Classifier
from ..configure import configure, load_method
from ..data.pixels.decoder import Pixels
from ..data.split import Split
from ..data.suite import Shots, Suite
from ..engine import Engine
from ..errors import Interrupted
from ..fit_setup import Fit
from ..identity import digest
from ..method import FineTuner, Method
from ..plugins import trust
from ..run_spec import DEFAULT_SUITE, RunSpec
from ..runs.experiment import Experiment, experiments
from ..stopping import Reporter
from .check import Check, NotApplicable

#: Images of each split: few enough for seconds, enough for several steps in each of two epochs.
IMAGES = 96
#: Two epochs, so that a stop falls into either; a batch that no split of the micro-batch divides.
_SMALL = {"epochs": 2, "batch_size": 8, "select": "best", "augment": "flip"}
#: How far rounding may take the logits, as a share of the way that training moved them. AdamW
#: divides by second moments, which are tiny in its first steps, and so amplifies rounding: to
#: 0.4 % after 24 steps, and to 5 % after four. A loss that is cut wrongly moves them by far more.
_ROUNDING = 0.1


class _StepCounter(Reporter):
    """A reporter that counts the steps, and requests a stop at a given one."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps = 0
        self._stop_at = stop_at

    def event(self, kind: str, **fields: Any) -> None:
        if kind == "step":
            self.steps = fields["step"]
            if self.steps == self._stop_at:
                self.stop = 2


class _TestImageOpened(AssertionError):
    pass


class _WithoutTestSplits:
    """A suite whose test splits cannot be opened."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite

    def __getattr__(self, name: str) -> Any:
        return getattr(self._suite, name)

    def load(self, split: str, pixels: Pixels, shots: Shots | None = None) -> Split:
        """Load a split, unless it is one that a fit must not open."""
        if split not in ("train", "id-val"):
            raise _TestImageOpened(f"the fit opened the split {split}")
        return self._suite.load(split, pixels, shots)


class MethodChecks:
    """The checks of one method on one suite and backbone.

    Args:
        name: name of an installed method, or a `.py` file.
        suite: name or card; the embedded suite by default.
        backbone: name; the suite's by default.
        data_root: folder that holds the datasets.
        images: largest number of images of each split.
    """

    def __init__(
        self,
        name: str,
        *,
        suite: str | None = None,
        backbone: str | None = None,
        data_root: Path | None = None,
        images: int = IMAGES,
    ) -> None:
        trust(name)
        self.type = load_method(name)
        self._spec = RunSpec(
            methods=(name,),
            suite=suite or DEFAULT_SUITE,
            backbone=backbone,
            limit=images,
            data_root=data_root,
        )
        self._reporter = _StepCounter()
        # Removed when the checks are no longer referenced: they share it, whoever runs them.
        self._folder = tempfile.TemporaryDirectory(prefix="bench-check-")

    def checks(self) -> list[Check]:
        """Return the checks, in the order in which they are run."""
        return [
            Check("parameters are typed and refused when wrong", self.refuses_bad_parameters),
            Check("survives pickling and is rebuilt from its identity", self.can_be_sent),
            Check("fits, and gives finite logits of the right shape", self.fits),
            Check("opens no test image while fitting", self.sees_no_test_image),
            Check("same seed, same weights to the bit", self.is_deterministic),
            Check("resumes after a stop to the same weights", self.resumes),
            Check("is loaded from the store with the same logits", self.reloads),
            Check("micro-batches change nothing but rounding", self.accumulates),
            Check("two devices change nothing but rounding", self.shares_devices, slow=True),
        ]

    def method(self, experiment: Experiment) -> Method:
        """Return the method with the suite's recipe, shrunk to seconds."""
        recipe = {**experiment.setup.suite.card.recipe, **_SMALL}
        return configure(self.type, {}, recipe).bind(experiment.setup.traits)

    @cached_property
    def _opened(self) -> Experiment:
        """The suite and the backbone, opened once for all checks."""
        store = Path(self._folder.name)
        return experiments(self._spec, store=store, engine=Engine(threads=1))[0]

    def experiment(
        self, store: str, *, reporter: Reporter | None = None, **engine: Any
    ) -> Experiment:
        """Return an experiment with a store of its own, which cannot open a test split.

        Args:
            store: name of the store.
            reporter: receives the events of training.
            engine: fields of `Engine` other than one thread on one CPU.
        """
        setup = replace(
            self._opened.setup,
            suite=cast(Suite, _WithoutTestSplits(self._opened.setup.suite)),
            seed=0,
            engine=Engine(threads=1, **engine),
            reporter=reporter or _StepCounter(),
            shots=None,
        )
        return Experiment(setup, type(self._opened.store)(Path(self._folder.name) / store))

    @cached_property
    def first(self) -> Fit:
        """The first fit, which most checks compare another one with."""
        experiment = self.experiment("first", reporter=self._reporter)
        return experiment.fit(self.method(experiment))

    def logits(self, classifier: Classifier) -> Tensor:
        """Return the logits (n, C) of up to 64 images of id-val."""
        split = self.experiment("first").setup.split("id-val")
        rows = np.arange(min(64, len(split)))
        images = torch.from_numpy(split.take(rows)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            logits: Tensor = classifier(images)
        return logits

    def refuses_bad_parameters(self) -> str | None:
        """Check that unknown fields and values out of bounds raise, and that spaces are valid."""
        with_defaults = self.type()
        _must_refuse(self.type, {"no_such_parameter": 1})
        schema = self.type.model_json_schema()["properties"]
        tried = 0
        for key, facts in schema.items():
            if "exclusiveMinimum" in facts or "minimum" in facts:
                low = facts.get("exclusiveMinimum", facts.get("minimum", 0))
                _must_refuse(self.type, {key: low - 1})
                tried += 1
        given = {key: getattr(with_defaults, key) for key in self.type.model_fields}
        for key, space in self.type.search_space().items():
            for uniform in (0.0, 0.5, 0.999):
                self.type.model_validate({**given, key: space.sample(uniform)})
        return f"{tried} bounds and {len(self.type.search_space())} search spaces tried"

    def can_be_sent(self) -> str | None:
        """Check that another process can have it: by pickle, and from its identity."""
        method = self.type()
        if pickle.loads(pickle.dumps(method)) != method:
            raise AssertionError("the unpickled method differs")
        rebuilt = configure(self.type, method.identity()["parameters"])
        if digest(rebuilt.identity()) != digest(method.identity()):
            raise AssertionError("the method rebuilt from its identity differs")
        return None

    def fits(self) -> str | None:
        """Check shapes and finiteness of the logits, and count what was trained."""
        logits = self.logits(self.first.classifier)
        classes = len(self._opened.setup.suite.card.classes)
        if logits.shape[1:] != (classes,):
            raise AssertionError(f"logits have shape {tuple(logits.shape)}, not (n, {classes})")
        if not torch.isfinite(logits).all():
            raise AssertionError("logits are not finite")
        record = self.first.record
        return f"fit {record.fit_id[:8]}, {record.seconds:.1f} s"

    def sees_no_test_image(self) -> str | None:
        """Report how many fits were made where opening a test split raises an error."""
        # `first` is made that way: an access would have failed there, and in every check after it.
        return f"{1 + len(self.first.record.nested)} fits made with the test splits closed"

    def is_deterministic(self) -> str | None:
        """Check that a second fit in an empty store has the same weights."""
        experiment = self.experiment("second")
        _must_equal(self.first, experiment.fit(self.method(experiment)))
        return None

    def resumes(self) -> str | None:
        """Check that a fit that is stopped in each epoch and continued has the same weights."""
        steps = self._steps()
        stops = (1, steps // 2 + 1)
        for stop_at in stops:
            reporter = _StepCounter(stop_at)
            experiment = self.experiment("stopped", reporter=reporter)
            try:
                experiment.fit(self.method(experiment))
            except Interrupted:
                if not reporter.stop:
                    raise  # the user's own Ctrl-C
        experiment = self.experiment("stopped")
        _must_equal(self.first, experiment.fit(self.method(experiment)))
        return f"stopped after steps {stops[0]} and {stops[1]} of {steps}"

    def reloads(self) -> str | None:
        """Check that the weights in the store, loaded anew, give the same logits to the bit."""
        loaded = self.experiment("first").load(self.first.record)
        if not torch.equal(self.logits(loaded), self.logits(self.first.classifier)):
            raise AssertionError("the classifier from the store has other logits")
        return None

    def accumulates(self) -> str | None:
        """Check that the same batch in parts of 3 images gives the same logits."""
        return self._compared(self.experiment("micro", micro_batch=3))

    def shares_devices(self) -> str | None:
        """Check that the same batch on two devices (processes of the CPU) gives the same logits."""
        return self._compared(self.experiment("devices", device="cpu", devices=2))

    def _steps(self) -> int:
        """Return the steps of the first fit.

        Raises:
            NotApplicable: it does not train by steps of the loop.
        """
        assert self.first
        if not self._reporter.steps:
            raise NotApplicable("it does not train by steps of the loop")
        return self._reporter.steps

    def _compared(self, experiment: Experiment) -> str:
        """Fit there, and return how far the logits end from those of the first fit."""
        method = self.method(experiment)
        if not isinstance(method, FineTuner):
            raise NotApplicable("it does not train by steps of the loop itself")
        # Logits are compared, not weights: a weight whose gradient is zero but for rounding walks
        # at the full learning rate under AdamW, and changes nothing that the classifier says.
        other = self.logits(experiment.fit(method).classifier)
        first = self.logits(self.first.classifier)
        start = self.logits(experiment.start(method.head_init or "random"))
        share = float((first - other).norm() / (first - start).norm())
        if share > _ROUNDING:
            raise AssertionError(
                f"the logits differ by {100 * share:.1f} % of the way that training moved them"
            )
        return f"differs by {share:.1e} of the way that training moved the logits"


def _must_refuse(method: type[Method], values: dict[str, Any]) -> None:
    try:
        method.model_validate(values)
    except ValidationError:
        return
    raise AssertionError(f"it accepts {values}")


def _must_equal(one: Fit, other: Fit) -> None:
    if one.record.weights_sha256 != other.record.weights_sha256:
        raise AssertionError("the weights differ")
