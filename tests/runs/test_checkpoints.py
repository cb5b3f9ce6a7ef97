"""Checkpoints of other repositories: their logits are those of their own code, and what does not
fit is named.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.errors import BenchError, MissingPrerequisite
from bench.run_spec import run_spec
from bench.runs.experiment import experiments

from support.foreign_checkpoints import (
    CLASSES,
    CLIP,
    CONFIG,
    DIM,
    WIDTH,
    ClassificationHead,
    ClassificationModel,
    CLIPEncoder,
    ImageClassifier,
    ImageEncoder,
    ModelWrapper,
    agrees,
    folder_of,
    head_weights,
    loaded,
    pickled,
    zero_shot,
)
from support.runs import only_test_images


@pytest.mark.parametrize("normalize", [True, False])
def test_wise_ft(
    normalize: bool, tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    theirs = ImageClassifier(
        ImageEncoder(tuned), ClassificationHead(normalize, head_weights())
    ).eval()
    path = pickled(theirs, tmp_path / "checkpoint_10.pt")
    external, warnings = loaded(path, tiny_suite, backbone, tmp_path)
    assert (external.format, external.classifier.head.normalize, warnings) == (
        "wise-ft",
        normalize,
        [],
    )
    assert external.similarity > 0.9
    agrees(external, theirs)


def test_an_object_saved_by_torch(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    theirs = ImageClassifier(ImageEncoder(tuned), ClassificationHead(True, head_weights())).eval()
    torch.save(nn.DataParallel(theirs), tmp_path / "whole.pt")
    agrees(loaded(tmp_path / "whole.pt", tiny_suite, backbone, tmp_path)[0], theirs)


def test_flyp_gets_the_head_of_its_own_text_tower(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    path = pickled(CLIPEncoder(tuned), tmp_path / "checkpoint_9.pt")
    external, _ = loaded(path, tiny_suite, backbone, tmp_path)
    assert external.format == "FLYP"
    agrees(external, zero_shot(tuned))


def test_model_soups(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    theirs = ModelWrapper(tuned, head_weights()).eval()
    torch.save(theirs.state_dict(), tmp_path / "model_0.pt")
    external, warnings = loaded(tmp_path / "model_0.pt", tiny_suite, backbone, tmp_path)
    assert (external.format, external.classifier.head.normalize, warnings) == (
        "model-soups",
        True,
        [],
    )
    agrees(external, theirs)


def test_open_clip(tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in tuned.state_dict().items()}
    torch.save(
        {"epoch": 5, "name": "mine", "state_dict": state, "optimizer": {"state": {}}},
        tmp_path / "epoch_5.pt",
    )
    external, _ = loaded(tmp_path / "epoch_5.pt", tiny_suite, backbone, tmp_path)
    assert external.format == "open_clip"
    agrees(external, zero_shot(tuned))


def test_the_head_of_one_text_tower_is_another_under_another_activation(
    original: dict[str, Tensor], tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    (tmp_path / "gelu").mkdir()
    gelu = folder_of(original, tmp_path / "gelu", CONFIG | {"quick_gelu": False})
    torch.save(tuned.state_dict(), tmp_path / "epoch_5.pt")
    agrees(loaded(tmp_path / "epoch_5.pt", tiny_suite, backbone, tmp_path)[0], zero_shot(tuned))
    other = CLIP(nn.GELU).eval()
    other.load_state_dict(tuned.state_dict())
    agrees(loaded(tmp_path / "epoch_5.pt", tiny_suite, gelu, tmp_path)[0], zero_shot(other))


@pytest.mark.parametrize("head", ["zero-shot", "drawn"])
def test_robust_finetuning(
    head: str, tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    """Its optimiser's state names a static method, which protocol 2 pickles as a call of getattr;
    its plain head does not normalise, and the state dict does not say so.
    """
    classifier = (
        ClassificationHead(True, head_weights())
        if head == "zero-shot"
        else nn.Linear(DIM, len(CLASSES))
    )
    theirs = ClassificationModel(tuned.visual, classifier).eval()
    scheduler = {"anneal_func": torch.optim.lr_scheduler.OneCycleLR._annealing_cos}
    held = {
        "epoch": 9,
        "best_value": 0.8,
        "model": theirs.state_dict(),
        "optimizer": {"scheduler": scheduler},
    }
    torch.save(held, tmp_path / "ckpt-best.pt")
    with pytest.raises(pickle.UnpicklingError):  # torch alone cannot read it without running it
        torch.load(tmp_path / "ckpt-best.pt", weights_only=True)
    external, _ = loaded(tmp_path / "ckpt-best.pt", tiny_suite, backbone, tmp_path)
    assert (external.format, external.classifier.head.normalize) == (
        "robust-finetuning",
        head == "zero-shot",
    )
    agrees(external, theirs)


def test_half_precision_is_read_as_float(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    theirs = ModelWrapper(tuned, head_weights()).eval()
    torch.save(theirs.half().state_dict(), tmp_path / "model_0.pt")
    agrees(loaded(tmp_path / "model_0.pt", tiny_suite, backbone, tmp_path)[0], theirs.float())


@pytest.mark.parametrize("where", ["tower", "head"])
@pytest.mark.parametrize(
    "kind", [torch.int64, torch.complex64, torch.float8_e4m3fn, "sparse", "meta"]
)
def test_what_is_no_plain_floating_point_number_is_reported_and_not_cast(
    kind: torch.dtype | str,
    where: str,
    tuned: CLIP,
    tiny_suite: Path,
    backbone: str,
    tmp_path: Path,
) -> None:
    state = ModelWrapper(tuned, head_weights()).eval().state_dict()
    name = next(
        name
        for name in state
        if name.endswith("proj" if where == "tower" else "classification_head.weight")
    )
    whole = state[name]
    state[name] = whole.to_sparse() if kind == "sparse" else whole.to(kind)
    torch.save(state, tmp_path / "model_0.pt")
    with pytest.raises(BenchError, match="plain"):
        loaded(tmp_path / "model_0.pt", tiny_suite, backbone, tmp_path)


def test_the_row_names_the_format(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    torch.save(ModelWrapper(tuned, head_weights()).state_dict(), tmp_path / "model_0.pt")
    spec = run_spec({"methods": ("external",), "suite": str(tiny_suite), "backbone": backbone})
    record = bench.evaluate(tmp_path / "model_0.pt", spec, name="soup", store=tmp_path / "store")
    assert (record.status, record.phase, record.source_format) == (
        "done",
        "external",
        "model-soups",
    )
    assert record.label == "soup (model-soups checkpoint)"


# What is refused, and how it is told.


def test_the_other_activation(
    original: dict[str, Tensor], tuned: CLIP, tiny_suite: Path, tmp_path: Path
) -> None:
    """A pickled object says what it computes; a state dict does not, but is suspicious if its
    weights are not the backbone's.
    """
    (tmp_path / "gelu").mkdir()
    gelu = folder_of(original, tmp_path / "gelu", CONFIG | {"quick_gelu": False})
    theirs = ImageClassifier(ImageEncoder(tuned), ClassificationHead(True, head_weights()))
    path = pickled(theirs, tmp_path / "checkpoint_10.pt")
    with pytest.raises(BenchError, match=r"computes QuickGELU, and open_clip:.* computes GELU"):
        loaded(path, tiny_suite, gelu, tmp_path)
    torch.manual_seed(5)
    (tmp_path / "other").mkdir()
    other = folder_of(
        CLIP(nn.GELU).state_dict(), tmp_path / "other", CONFIG | {"quick_gelu": False}
    )
    soup = {
        name.removeprefix("image_encoder."): tensor for name, tensor in theirs.state_dict().items()
    }
    torch.save(soup, tmp_path / "m.pt")
    _, (warning,) = loaded(tmp_path / "m.pt", tiny_suite, other, tmp_path)
    assert "not fine-tuned from open_clip:" in warning
    assert "its code loads OpenAI's models, which need QuickGELU" in warning
    # That backbone's own weights, its activation not.
    _, (warning,) = loaded(tmp_path / "m.pt", tiny_suite, gelu, tmp_path)
    assert "the code of model-soups loads OpenAI's models, which need QuickGELU" in warning


def test_a_backbone_of_another_library(tuned: CLIP, tiny_suite: Path, tmp_path: Path) -> None:
    torch.save(ModelWrapper(tuned, head_weights()).state_dict(), tmp_path / "m.pt")
    with pytest.raises(BenchError, match="a CLIP image tower, and mini-clip does not") as caught:
        loaded(tmp_path / "m.pt", tiny_suite, "mini-clip", tmp_path)
    assert "--backbone open_clip:ARCH/TAG" in caught.value.fix


def test_without_training_images_the_rest_is_measured(
    tuned: CLIP, backbone: str, tiny_suite: Path, tmp_path: Path
) -> None:
    """Evaluating needs no training images, which are often the largest part of a dataset and not
    at hand.
    """
    card = only_test_images(tiny_suite, tmp_path)
    torch.save(ModelWrapper(tuned, head_weights()).state_dict(), tmp_path / "m.pt")
    spec = run_spec({"methods": ("external",), "suite": str(card), "backbone": backbone})
    record = bench.evaluate(tmp_path / "m.pt", spec, name="soup", store=tmp_path / "store")
    assert record.metrics.keys() == {"id-test", "inverted"}
    assert record.holes.keys() == {"id-val", "noisy"}
    with pytest.raises(
        MissingPrerequisite, match="the ID images of Tiny generated shapes are missing"
    ):
        experiments(spec, store=tmp_path / "store")


def test_another_number_of_classes(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    torch.save(ModelWrapper(tuned, torch.randn(7, DIM)).state_dict(), tmp_path / "m.pt")
    with pytest.raises(BenchError, match="its head has 7 classes, and tiny has 3"):
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ({"0.weight": head_weights(), "0.bias": torch.zeros(3)}, r"0\.bias, 0\.weight"),
        ({"weight": head_weights(), "scale": torch.ones(1)}, "scale, weight"),
        ({"bias": torch.zeros(3)}, "bias"),
    ],
)
def test_a_head_that_is_not_one_linear_layer(
    head: dict[str, Tensor],
    named: str,
    tuned: CLIP,
    tiny_suite: Path,
    backbone: str,
    tmp_path: Path,
) -> None:
    """Not even beside a whole text tower, of which a zero-shot head could be made."""
    state = {f"model.{name}": tensor for name, tensor in tuned.state_dict().items()}
    torch.save(
        state | {f"classification_head.{name}": tensor for name, tensor in head.items()},
        tmp_path / "m.pt",
    )
    with pytest.raises(
        BenchError, match=f"its head is not one linear layer .*, but has the tensors {named}\n"
    ) as caught:
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)
    assert len(str(caught.value).splitlines()) == 3


def test_missing_unknown_and_misshapen_tensors_are_named(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    state = ModelWrapper(tuned, head_weights()).state_dict()
    del state["model.visual.proj"]
    state["model.visual.conv1.weight"] = torch.zeros(WIDTH, 3, 4, 4)
    state["model.visual.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(BenchError) as caught:
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)
    assert "tower.visual.proj is missing" in caught.value.what
    assert "tower.visual.extra is unknown" in caught.value.what
    assert (
        "tower.visual.conv1.weight has shape (32, 3, 4, 4) instead of (32, 3, 8, 8)"
        in caught.value.what
    )
    assert len(str(caught.value).splitlines()) == 3


def test_tensors_next_to_the_classifier(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    torch.save(
        ModelWrapper(tuned, head_weights()).state_dict() | {"adapter.up": torch.zeros(1)},
        tmp_path / "m.pt",
    )
    with pytest.raises(BenchError, match=r"outside the classifier: adapter\.up"):
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)


def test_neither_head_nor_text_tower(
    tuned: CLIP, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    path = pickled(ImageEncoder(tuned), tmp_path / "encoder.pt")
    with pytest.raises(
        BenchError, match=r"no head, and no text tower .* model\.transformer.* is missing"
    ):
        loaded(path, tiny_suite, backbone, tmp_path)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (nn.Linear(3, 3), "no known classifier; .* bias, weight"),
        ({"optimizer": {"state": {}}, "epoch": 3}, "'optimizer', 'epoch'"),
        ([1, 2], "a list"),
    ],
)
def test_what_is_no_classifier(
    thing: object, message: str, tiny_suite: Path, backbone: str, tmp_path: Path
) -> None:
    torch.save(thing, tmp_path / "m.pt")
    with pytest.raises(BenchError, match=message):
        loaded(tmp_path / "m.pt", tiny_suite, backbone, tmp_path)


def test_the_architecture_is_reported_where_it_is_another() -> None:
    from bench.backbones.open_clip_backbone import architectures_like

    visual = {
        "conv1.weight": torch.empty(768, 3, 16, 16, device="meta"),
        "proj": torch.empty(768, 512, device="meta"),
        "positional_embedding": torch.empty(197, 768, device="meta"),
        **{
            f"transformer.resblocks.{i}.ln_1.bias": torch.empty(768, device="meta")
            for i in range(12)
        },
    }
    assert architectures_like(visual)[:2] == ["ViT-B-16", "ViT-B-16-quickgelu"]
