"""What every method must do, tried on a few images of a small suite: fit, repeat, resume, refuse,
and see no test image.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import ValidationError

from ..configure import configure, load_method
from ..data.pixels.decoder import Pixels
from ..data.split import Split
from ..data.suite import Shots, Suite
from ..engine import Engine
from ..errors import Interrupted
from ..identity import digest
from ..method import FineTuner, Method
from ..plugins import trust
from ..runs.experiment import Experiment, experiments
from ..spec import RunSpec
from ..stopping import Reporter
from ..task import Fit
from .outcome import NotApplicable, Outcome, outcome_of

#: Small enough for seconds, large enough for several steps and epochs.
_IMAGES, _SMALL = 96, {"epochs": 2, "batch_size": 8, "select": "best", "augment": "flip"}


class _Quiet(Reporter):
    """A reporter that asks to stop at a given step, and counts the steps."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps = 0
        self._stop_at = stop_at

    def event(self, kind: str, **fields: Any) -> None:
        if kind == "step":
            self.steps = fields["step"]
            if self.steps == self._stop_at:
                self.stop = 2


class _TestImagesAreForbidden(AssertionError):
    pass


class _Guarded:
    """A suite whose test splits cannot be opened."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite

    def __getattr__(self, name: str) -> Any:
        return getattr(self._suite, name)

    def load(self, split: str, pixels: Pixels, shots: Shots | None = None) -> Split:
        """As the suite's, for train and id-val only."""
        if split not in ("train", "id-val"):
            raise _TestImagesAreForbidden(f"the fit opened the split {split}")
        return self._suite.load(split, pixels, shots)


class MethodChecks:
    """Checks of one method on one suite and backbone.

    Args:
        name: name or file of the method. suite, backbone: where to try it.
    """

    def __init__(
        self, name: str, *, suite: str, backbone: str | None = None, data_root: Path | None = None
    ) -> None:
        trust(name)
        self.type = load_method(name)
        self._spec = RunSpec(
            methods=(name,), suite=suite, backbone=backbone, limit=_IMAGES, data_root=data_root
        )
        self._opened: Experiment | None = None
        self._first: Fit | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="bench-check-")

    def run(self) -> Iterator[Outcome]:
        """Every check in turn; the temporary store is removed at the end."""
        checks = [
            ("parameters are typed and refused when wrong", self.refuses_bad_parameters),
            ("survives pickling and is rebuilt from its identity", self.can_be_sent),
            ("fits, and gives finite logits of the right shape", self.fits),
            ("opens no test image while fitting", self.sees_no_test_image),
            ("same seed, same weights to the bit", self.is_deterministic),
            ("resumes after a stop to the same weights", self.resumes),
            ("micro-batches change nothing but rounding", self.accumulates),
        ]
        try:
            for name, check in checks:
                yield outcome_of(name, check)
        finally:
            self._folder.cleanup()

    def method(self, experiment: Experiment) -> Method:
        """The method with the suite's recipe, shrunk to seconds."""
        recipe = {**experiment.setup.suite.card.recipe, **_SMALL}
        return configure(self.type, {}, recipe).resolved(experiment.setup.traits)

    def experiment(
        self, store: str, *, reporter: _Quiet | None = None, micro_batch: int | None = None
    ) -> Experiment:
        """A guarded experiment with a store of its own; the suite is opened once."""
        if self._opened is None:
            self._opened = experiments(
                self._spec, store=Path(self._folder.name), engine=Engine(threads=1)
            )[0]
        first = self._opened
        setup = replace(
            first.setup,
            suite=cast(Suite, _Guarded(first.setup.suite)),
            seed=0,
            engine=Engine(threads=1, micro_batch=micro_batch),
            reporter=reporter or _Quiet(),
            shots=None,
        )
        return Experiment(setup, type(first.store)(Path(self._folder.name) / store))

    def fitted(self) -> Fit:
        """The first fit, made once."""
        if self._first is None:
            experiment = self.experiment("first")
            self._first = experiment.fit(self.method(experiment))
        return self._first

    def refuses_bad_parameters(self) -> str | None:
        """Unknown fields and values outside a field's bounds raise; every searched field draws
        valid values.
        """
        with_defaults = self.type()
        _must_refuse(self.type, {"no_such_parameter": 1})
        schema = self.type.model_json_schema()["properties"]
        tried = 0
        for key, facts in schema.items():
            if "exclusiveMinimum" in facts or "minimum" in facts:
                _must_refuse(
                    self.type, {key: facts.get("exclusiveMinimum", facts.get("minimum", 0)) - 1}
                )
                tried += 1
        for key, space in self.type.search_space().items():
            for uniform in (0.0, 0.5, 0.999):
                self.type.model_validate(
                    {
                        **{k: getattr(with_defaults, k) for k in self.type.model_fields},
                        key: space.draw(uniform),
                    }
                )
        return f"{tried} bounds and {len(self.type.search_space())} search spaces tried"

    def can_be_sent(self) -> str | None:
        """Another process can have it: by pickle (installed methods) and by its identity."""
        method = self.type()
        if pickle.loads(pickle.dumps(method)) != method:
            raise AssertionError("the unpickled method differs")
        rebuilt = configure(self.type, method.identity()["parameters"])
        if digest(rebuilt.identity()) != digest(method.identity()):
            raise AssertionError("the method rebuilt from its identity differs")
        return None

    def fits(self) -> str | None:
        """Shapes and finiteness on id-val images."""
        fit = self.fitted()
        experiment = self.experiment("first")
        split = experiment.setup.split("id-val")
        images = torch.from_numpy(split.take(np.arange(8))).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            logits = fit.classifier(images)
        wanted = (len(images), len(experiment.setup.suite.card.classes))
        if tuple(logits.shape) != wanted:
            raise AssertionError(f"logits have shape {tuple(logits.shape)}, not {wanted}")
        if not torch.isfinite(logits).all():
            raise AssertionError("logits are not finite")
        return f"fit {fit.record.fit_id[:8]}, {fit.record.seconds:.1f} s"

    def sees_no_test_image(self) -> str | None:
        """Every fit here runs where opening a test split raises; an error from it would have been
        raised in `fits`.
        """
        fit = self.fitted()
        return f"{1 + len(fit.record.nested)} fits made with the test splits closed"

    def is_deterministic(self) -> str | None:
        """A second fit in an empty store has the same weights."""
        experiment = self.experiment("second")
        again = experiment.fit(self.method(experiment))
        _same(self.fitted(), again)
        return None

    def resumes(self) -> str | None:
        """Stopped in the first and in the second epoch and continued: the same weights."""
        stops = (3, 6)
        for stop_at in stops:
            reporter = _Quiet(stop_at)
            experiment = self.experiment("stopped", reporter=reporter)
            try:
                experiment.fit(self.method(experiment))
            except Interrupted:
                if not reporter.stop:
                    raise  # the user's own Ctrl-C
            else:
                raise NotApplicable("it does not train by steps of the loop")
        experiment = self.experiment("stopped")
        _same(self.fitted(), experiment.fit(self.method(experiment)))
        return f"stopped after steps {stops[0]} and {stops[1]}"

    def accumulates(self) -> str | None:
        """The same global batch in parts of 3 gives the same weights up to rounding."""
        experiment = self.experiment("micro", micro_batch=3)
        method = self.method(experiment)
        if not isinstance(method, FineTuner):
            raise NotApplicable("it does not train by steps of the loop itself")
        parts = experiment.fit(method).classifier.named_weights()
        whole = self.fitted().classifier.named_weights()
        start = experiment.start(method.head_init or "random").named_weights()
        moved = torch.cat(
            [(whole[n] - start[n]).flatten() for n in whole if whole[n].is_floating_point()]
        ).norm()
        apart = torch.cat(
            [(whole[n] - parts[n]).flatten() for n in whole if whole[n].is_floating_point()]
        ).norm()
        share = float(apart / moved)
        # AdamW divides by tiny second moments in its first steps, which amplifies rounding; a
        # different meaning is far larger.
        if share > 0.02:
            raise AssertionError(
                f"micro-batches change the weights by {100 * share:.1f} % of the way that training"
                " moved them"
            )
        return f"differs by {share:.1e} of the way that training moved the weights"


def _must_refuse(method: type[Method], values: dict[str, Any]) -> None:
    try:
        method.model_validate(values)
    except ValidationError:
        return
    raise AssertionError(f"it accepts {values}")


def _same(one: Fit, other: Fit) -> None:
    if one.record.weights_sha256 != other.record.weights_sha256:
        raise AssertionError("the weights differ")
