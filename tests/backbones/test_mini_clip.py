"""mini-clip: shipped weights that know the classes, tokens that can be left out, attention that can
be read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.backbones.backbone import zero_shot_head
from bench.backbones.mini_clip import FOLDER, MiniClip, MiniImageTower, Stem, load
from bench.datasets.mini import MiniWorld
from bench.errors import MissingPrerequisite, UsageError


@pytest.fixture(scope="module")
def backbone() -> MiniClip:
    return MiniClip()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    pixels = MiniWorld(seed=11, test_size=40).render("id-test").pixels
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def test_the_shipped_weights_have_the_hash_on_their_card(backbone: MiniClip) -> None:
    card = json.loads((FOLDER / "mini-clip.json").read_text())
    content = (FOLDER / card["weights"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == card["sha256"] == backbone.weights_sha256
    assert len(content) < 5_000_000


@pytest.mark.parametrize(
    ("split", "floor"), [("id-test", 45), ("sketch", 55), ("rendition", 45), ("objectnet", 25)]
)
def test_zero_shot_accuracy_is_far_above_chance_in_every_style(
    backbone: MiniClip, split: str, floor: float
) -> None:
    card = tomllib.loads(
        (resources.files("bench.datasets") / "mini-shifts.toml").read_text(encoding="utf-8")
    )
    rendered = MiniWorld(seed=11, test_size=400).render(split)
    head = zero_shot_head(backbone.text_tower(), card["classes"], card["templates"])
    pixels = torch.from_numpy(rendered.pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        predicted = head(backbone.image_tower()(pixels)).argmax(dim=1)
    assert (predicted == torch.from_numpy(rendered.labels)).float().mean() * 100 > floor


def test_every_prompt_of_the_suite_is_in_the_vocabulary(backbone: MiniClip) -> None:
    card = tomllib.loads(
        (resources.files("bench.datasets") / "mini-shifts.toml").read_text(encoding="utf-8")
    )
    text = backbone.text_tower()
    tokens = text.tokenize(
        [template.format(name) for template in card["templates"] for name in card["classes"]]
    )
    assert (tokens != 1).all()


def test_words_outside_the_vocabulary_are_one_unknown_word_and_long_texts_are_cut(
    backbone: MiniClip,
) -> None:
    text = backbone.text_tower()
    one, two = text.tokenize(["A photo of a zebra!", "a photo of a xylophone"])
    assert torch.equal(one, two)
    assert text.tokenize(["a " * 50]).shape == (1, 16)
    assert torch.isfinite(text(text.tokenize(["", "42!"]))).all()


def test_an_embedding_does_not_depend_on_the_padding_of_its_text(backbone: MiniClip) -> None:
    text = backbone.text_tower()
    tokens = text.tokenize(["a photo of a star"])
    with torch.no_grad():
        torch.testing.assert_close(text(tokens), text(tokens[:, :8]), rtol=1e-5, atol=1e-5)


def test_explain_gives_the_same_features_and_attention_rows_that_sum_to_one(
    backbone: MiniClip, images: torch.Tensor
) -> None:
    tower = backbone.image_tower()
    features, attentions = tower.explain(images)
    torch.testing.assert_close(features, tower(images), rtol=1e-5, atol=1e-5)
    assert [tuple(a.shape) for a in attentions] == [(40, 4, 37, 37)] * 3
    for attention in attentions:
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(40, 4, 37))


def test_attention_is_inside_the_graph_of_the_features(
    backbone: MiniClip, images: torch.Tensor
) -> None:
    features, attentions = backbone.image_tower().explain(images[:4])
    gradients = torch.autograd.grad(features.sum(), attentions)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_masked_patches_have_no_influence_through_their_tokens(
    backbone: MiniClip, images: torch.Tensor
) -> None:
    tower = backbone.image_tower()
    keep = torch.rand(40, 36, generator=torch.Generator().manual_seed(0)) < 0.6
    with torch.no_grad():
        tokens = tower.stem((images - 0.45) / 0.27).flatten(2).transpose(1, 2)
        with_class = (
            torch.cat((tower.class_token.expand(40, 1, -1), tokens), dim=1) + tower.positions
        )
        for row in range(5):  # the definition: run the blocks on the kept tokens alone
            chosen = torch.cat((torch.tensor([True]), keep[row]))
            hidden = with_class[row : row + 1, chosen]
            for block in tower.blocks:
                hidden = block(hidden)
            expected = tower.projection(tower.norm(hidden[:, 0]))
            torch.testing.assert_close(
                tower(images[row : row + 1], keep[row : row + 1]), expected, rtol=1e-4, atol=1e-4
            )


def test_keeping_all_patches_is_the_plain_forward_and_keeping_none_leaves_the_class_token(
    backbone: MiniClip, images: torch.Tensor
) -> None:
    tower = backbone.image_tower()
    with torch.no_grad():
        everything = tower(images, torch.ones(40, 36, dtype=torch.bool))
        nothing = tower(images, torch.zeros(40, 36, dtype=torch.bool))
        torch.testing.assert_close(everything, tower(images), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(nothing).all()
    torch.testing.assert_close(nothing, nothing[:1].expand_as(nothing))


def test_folding_batch_normalisation_keeps_the_function(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    stem = Stem(batch_norm=True).train()
    with torch.no_grad():
        for _ in range(3):
            stem(images)
        expected = stem.eval()(images)
        folded = stem.folded().eval()
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded)
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4)


def test_the_shipped_tower_has_no_running_statistics_and_no_randomness(
    backbone: MiniClip, images: torch.Tensor
) -> None:
    tower = backbone.image_tower()
    assert list(tower.buffers()) == []
    assert not tower.training
    with torch.no_grad():
        assert torch.equal(tower(images), tower.train()(images))


def test_every_copy_is_its_own(backbone: MiniClip) -> None:
    one, two = backbone.image_tower(), backbone.image_tower()
    with torch.no_grad():
        next(one.parameters()).add_(1)
    assert not torch.equal(next(one.parameters()), next(two.parameters()))
    assert isinstance(two, MiniImageTower)


def test_missing_and_altered_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite):
        load(str(tmp_path))
    for name in ("mini-clip.json", "mini-clip.safetensors"):
        shutil.copy(FOLDER / name, tmp_path / name)
    assert load(str(tmp_path)).weights_sha256 == load("").weights_sha256
    with (tmp_path / "mini-clip.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UsageError, match="hash on its card"):
        load(str(tmp_path))
