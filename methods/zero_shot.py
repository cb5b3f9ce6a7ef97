"""The pre-trained classifier as it is, without any training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from bench.errors import UsageError
from bench.method import Method, Traits

if TYPE_CHECKING:
    from bench.classifier import Classifier
    from bench.task import Task


class ZeroShot(Method):
    """Classify by the cosine to class-prompt embeddings (Radford et al., 2021), or with the
    backbone's own head.

    The base that every robust fine-tuning method starts from and is measured against.
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

    def resolved(self, traits: Traits) -> Self:
        """Choose the head; UsageError where the backbone has no such head."""
        offered = {"zero-shot": traits.text, "native": traits.native}
        there = [head for head, is_there in offered.items() if is_there]
        if not there:
            raise UsageError(
                "this backbone has neither a text tower nor a head of its own on these classes:"
                " untrained, it cannot classify",
                where=f"method {self.name}",
                fix="`bench run linear-probe` trains a head on its frozen features",
            )
        chosen = self.head_init or there[0]
        if chosen not in there:
            lacks = "text tower" if chosen == "zero-shot" else "head of its own on these classes"
            where, fix = f"method {self.name}, head_init={chosen}", f"--set head_init={there[0]}"
            raise UsageError(f"this backbone has no {lacks}", where=where, fix=fix)
        return self.model_copy(update={"head_init": chosen})

    def fit(self, task: Task) -> Classifier:
        """The starting classifier."""
        assert self.head_init is not None, "a method is resolved before it is fitted"
        return task.start(self.head_init)
