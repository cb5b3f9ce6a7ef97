"""Zero-shot classification: the pre-trained classifier, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from bench.errors import UsageError
from bench.method import Method, Traits

if TYPE_CHECKING:
    from bench.classifier import Classifier
    from bench.task import Task


class ZeroShot(Method):
    """Classify by the cosine to embeddings of class prompts (Radford et al., 2021).

    A backbone without a text tower classifies with its own head. Robust fine-tuning methods start
    from this classifier and are compared with it.
    """

    name: ClassVar[str] = "zero-shot"
    paper: ClassVar[str] = "https://arxiv.org/abs/2103.00020"
    bibtex: ClassVar[str] = """@inproceedings{radford2021learning,
  title = {Learning Transferable Visual Models From Natural Language Supervision},
  author = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and
            Goh, Gabriel and Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and
            Mishkin, Pamela and Clark, Jack and Krueger, Gretchen and Sutskever, Ilya},
  booktitle = {International Conference on Machine Learning},
  year = {2021}
}"""
    trains: ClassVar[bool] = False

    head_init: Literal["zero-shot", "native"] | None = Field(
        default=None, description="default: zero-shot if offered, else native"
    )

    def bind(self, traits: Traits) -> Self:
        """Choose the head.

        Raises:
            UsageError: the backbone has no such head, or none at all.
        """
        # In this order: the first available head is the default.
        has = {"zero-shot": traits.text, "native": traits.native}
        available = [head for head, is_available in has.items() if is_available]
        if not available:
            raise UsageError(
                "this backbone has neither a text tower nor a native head for these classes, so it"
                " cannot classify without training",
                where=f"method {self.name}",
                fix="train a head on its features: `bench run linear-probe`",
            )
        chosen = self.head_init or available[0]
        if chosen not in available:
            lacks = "text tower" if chosen == "zero-shot" else "native head for these classes"
            where = f"method {self.name}, head_init={chosen}"
            fix = f"use --set head_init={available[0]}"
            raise UsageError(f"this backbone has no {lacks}", where=where, fix=fix)
        return self.model_copy(update={"head_init": chosen})

    def fit(self, task: Task) -> Classifier:
        """Return the starting classifier."""
        assert self.head_init is not None, "call bind() before fit()"
        return task.start(self.head_init)
