"""Pre-train mini-clip from scratch: `python scripts/mini_pretrain.py FOLDER`.

The script renders captioned images in every style, context and pose, each sampled independently of
the class, and trains both towers with CLIP's symmetric contrastive loss (Radford et al., 2021). On
its own, that loss decreases while the towers learn the words for style and colour, and then stays
on a plateau for longer than is practical on a laptop. Four additions take it past the plateau
within minutes:

- A noun loss contrasts each image with the names of all classes, and not only with the captions of
  its batch.
- An auxiliary head on the convolutional stem, which is discarded afterwards, teaches the stem
  shapes before the transformer can pass that signal down: at first it averages over positions.
- The text tower is trained later than the image tower. Trained against noise, it would first learn
  to give all nouns the same embedding.
- A curriculum goes from large, centred, clean objects to small ones in clutter.

The seed and the number of threads are fixed. The script writes the weights, a card with their
SHA-256, and a log.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from bench.backbones.mini_clip import DIM, GRID, PAD, UNKNOWN, MiniImageTower, MiniTextTower
from bench.datasets.mini.render import CHUNK, paint_chunks, paint_scenes
from bench.datasets.mini.scenes import SceneRecipe, sample_scenes
from bench.datasets.mini.silhouettes import CLASSES, stream
from bench.datasets.mini.styles import STYLES
from bench.datasets.mini.world import MiniWorld

from mini_captions import vocabulary, write_captions

# Photos have a share of 0.3, and the other styles share the rest equally. These values and those
# of `Plan` were tuned as docs/mini-freeze.md describes, and are frozen.
_STYLE_WEIGHTS = tuple(0.3 if name == "photo" else 0.7 / (len(STYLES) - 1) for name in STYLES)
#: The two ends of the curriculum.
EASY = SceneRecipe(
    tuple(STYLES), _STYLE_WEIGHTS, "random",
    scale=(0.55, 0.78), rotation=0.2, centred=0.8, texture=0.1, noise=0.03, clutter=0.0, plain=0.6,
)  # fmt: skip
HARD = SceneRecipe(
    tuple(STYLES), _STYLE_WEIGHTS, "random",
    scale=(0.34, 0.76), rotation=0.8, deform=0.18, centred=0.1, noise=0.06, clutter=0.25,
    occluder=0.15,
)  # fmt: skip
#: What the card of the weights says about the images that the backbone has seen.
SEEN = (
    "mini-clip's own captioned renderings: every class, colour and background drawn independently,"
    " in all eight styles and with the poses of every split; other seeds than any suite's"
)


@dataclass(frozen=True)
class Plan:
    """The hyper-parameters. With the machine's arithmetic, they determine the weights.

    Attributes:
        clip: Largest norm of the gradient.
        warmup: Steps in which the image tower's learning rate increases linearly.
        text_waits: Step at which the training of the text tower begins.
        easy_share_end: Share of easy images at the end of the curriculum; 1 at its beginning.
        curriculum: Share of the steps after which the curriculum ends.
        noun_weight: Weight of the noun loss at the first step.
        noun_weight_end: The same from the middle of training on.
        stem_weight: Weight of the loss of the stem's head at the first step.
        stem_until: Share of the steps after which that weight is 0.
        threads: Threads of torch, which change the order of sums and so the last bits.
    """

    seed: int = 7
    steps: int = 800
    batch: int = 64
    easy_images: int = 16_000
    hard_images: int = 40_000
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup: int = 40
    text_waits: int = 75
    easy_share_end: float = 0.12
    curriculum: float = 0.3
    noun_weight: float = 1.0
    noun_weight_end: float = 0.5
    stem_weight: float = 1.0
    stem_until: float = 0.5
    threads: int = 2


@dataclass
class Corpus:
    """N captioned images.

    Attributes:
        pixels: (N, 48, 48, 3) uint8.
        tokens: (N, 16), the captions.
        named: (N,), the class that the caption names; -1 if none.
    """

    pixels: NDArray[np.uint8]
    tokens: Tensor
    named: Tensor


def render_corpus(
    kind: str, recipe: SceneRecipe, count: int, seed: int, text: MiniTextTower
) -> Corpus:
    """Render and caption `count` images of a recipe.

    Args:
        kind: Name of the recipe in the random streams.
        recipe: What the scenes look like.
        count: Number of images.
        seed: Seed of the random streams.
        text: Text tower, for its tokenizer.
    """
    # Each chunk has random streams of its own, so that threads can render chunks in any order.
    chunks = -(-count // CHUNK)
    captions: list[list[str]] = [[] for _ in range(chunks)]
    named: list[list[int]] = [[] for _ in range(chunks)]

    def paint(chunk: int) -> NDArray[np.uint8]:
        labels = (np.arange(CHUNK) + chunk * CHUNK) % len(CLASSES)

        def streams(purpose: str) -> np.random.Generator:
            return stream("mini-clip", seed, kind, purpose, chunk)

        scenes = sample_scenes(recipe, labels, streams, bias=0.0, paint_bias=0.0)
        captions[chunk], named[chunk] = write_captions(scenes, streams("caption"))
        return paint_scenes(
            scenes, lambda purpose: stream("mini-clip", seed, kind, purpose, chunk, "paint")
        )

    pixels = paint_chunks(count, paint)
    tokens = text.tokenize([caption for chunk in captions for caption in chunk][:count])
    return Corpus(
        pixels, tokens, torch.tensor([label for chunk in named for label in chunk][:count])
    )


def to_images(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert (N, 48, 48, 3) uint8 to (N, 3, 48, 48) in [0, 1], channels last in memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def fall(start: float, end: float, share: float) -> float:
    """Interpolate from `start` at share 0 to `end` at share 1, and return `end` from there on."""
    return start + (end - start) * min(1.0, share)


def learning_rates(plan: Plan, step: int) -> tuple[float, float]:
    """Return the learning rates of the image tower and the text tower at a step.

    Both decrease to 0 along one cosine. The image tower has a linear warm-up, and the text tower
    one of 50 steps that begins at `plan.text_waits`.
    """
    cosine = plan.learning_rate * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    joined = min(1.0, max(0.0, (step - plan.text_waits) / 50))
    return cosine * min(1.0, (step + 1) / plan.warmup), cosine * joined


@torch.no_grad()
def zero_shot(
    image: nn.Module, text: MiniTextTower, pixels: NDArray[np.uint8], labels: NDArray[np.int64]
) -> float:
    """Return the zero-shot accuracy in percent with the single prompt "a photo of a".

    Args:
        image: Image tower.
        text: Text tower.
        pixels: (N, 48, 48, 3) uint8.
        labels: (N,).
    """
    # In eval mode, batch norm uses its running statistics, as the shipped weights do.
    image.eval()
    names = F.normalize(text(text.tokenize([f"a photo of a {name}" for name in CLASSES])), dim=1)
    scores = torch.cat(
        [image(to_images(pixels[i : i + 250])) @ names.T for i in range(0, len(pixels), 250)]
    )
    image.train()
    return float((scores.argmax(dim=1).numpy() == labels).mean() * 100)


def train(
    plan: Plan, image: MiniImageTower, text: MiniTextTower, log: list[dict[str, Any]]
) -> None:
    """Train both towers in place, and append losses and accuracies to `log` every 100 steps."""
    # The probes come from the mini world with the seed of the pre-training. The suite's world has
    # another seed, and its accuracy is never looked at here.
    easy = render_corpus("easy", EASY, plan.easy_images, plan.seed, text)
    hard = render_corpus("hard", HARD, plan.hard_images, plan.seed, text)
    world = MiniWorld(seed=plan.seed, test_size=500)
    probes = {name: world.render(name) for name in ("id-test", "sketch", "rendition", "objectnet")}
    prompts = text.tokenize([f"a {name}" for name in CLASSES])

    # The stem's output is taken by a hook, so that the tower that is saved knows nothing of it.
    stem_head = nn.Linear(DIM * GRID * GRID, len(CLASSES))
    stem_maps: list[Tensor] = []
    hook = image.stem.register_forward_hook(lambda module, inputs, output: stem_maps.append(output))
    towers = nn.ModuleDict({"image": image, "text": text, "stem head": stem_head})
    # Six groups: of each module the matrices, which decay, and the vectors, which do not. The first
    # four have the image tower's learning rate, the last two the text tower's.
    groups = [
        {
            "params": [p for p in module.parameters() if (p.ndim > 1) == decays],
            "weight_decay": plan.weight_decay * decays,
        }
        for module in (image, stem_head, text)
        for decays in (True, False)
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    rng = stream("mini-clip", plan.seed, "batches")
    started = time.perf_counter()
    for step in range(plan.steps):
        image_rate, text_rate = learning_rates(plan, step)
        for index, group in enumerate(optimiser.param_groups):
            group["lr"] = image_rate if index < 4 else text_rate
        # The curriculum sets the expected share of easy images; their number in a batch is random.
        done = step / plan.steps
        easy_share = fall(1.0, plan.easy_share_end, done / plan.curriculum)
        easy_count = int(rng.binomial(plan.batch, easy_share))
        from_easy = np.sort(rng.choice(plan.easy_images, easy_count, replace=False))
        from_hard = np.sort(rng.choice(plan.hard_images, plan.batch - easy_count, replace=False))
        images = to_images(np.concatenate((easy.pixels[from_easy], hard.pixels[from_hard])))
        tokens = torch.cat((easy.tokens[from_easy], hard.tokens[from_hard]))
        named = torch.cat((easy.named[from_easy], hard.named[from_hard]))

        # One pass of the text tower embeds the captions of the batch and the names of all classes.
        image_features = F.normalize(image(images), dim=1)
        text_features = F.normalize(text(torch.cat((tokens, prompts))), dim=1)
        captions, class_names = text_features[: plan.batch], text_features[plan.batch :]
        scale = text.log_scale.exp()
        logits = scale * image_features @ captions.T
        pairs = torch.arange(plan.batch)
        contrast = 0.5 * (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs))
        # A caption without a class takes no part in the losses on nouns and shapes.
        nouns = F.cross_entropy(scale * image_features @ class_names.T, named, ignore_index=-1)
        shapes = F.cross_entropy(
            stem_head(stem_maps.pop().relu().flatten(1)), named, ignore_index=-1
        )
        noun_weight = fall(plan.noun_weight, plan.noun_weight_end, done / 0.5)
        stem_weight = fall(plan.stem_weight, 0.0, done / plan.stem_until)
        optimiser.zero_grad()
        loss = contrast + noun_weight * nouns + stem_weight * shapes
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(towers.parameters(), plan.clip)
        optimiser.step()

        if (step + 1) % 100 == 0 or step + 1 == plan.steps:
            accuracy = {
                name: zero_shot(image, text, part.pixels, part.labels)
                for name, part in probes.items()
            }
            entry = {
                "step": step + 1,
                "contrast": round(contrast.item(), 4),
                "nouns": round(nouns.item(), 4),
                "shapes": round(shapes.item(), 4),
                "scale": round(text.scale, 3),
                "seconds": round(time.perf_counter() - started, 1),
                "zero_shot": {name: round(value, 1) for name, value in accuracy.items()},
            }
            log.append(entry)
            print(json.dumps(entry), file=sys.stderr, flush=True)
            # The hook has also recorded the passes of the evaluation.
            stem_maps.clear()
    hook.remove()


def pretrain(plan: Plan, folder: Path) -> str:
    """Run the plan and write `mini-clip.safetensors`, its card and its log into `folder`.

    Returns:
        The SHA-256 of the file with the weights.
    """
    # On one kind of machine, these three make the weights the same bits every time.
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(plan.seed)
    text = MiniTextTower([PAD, UNKNOWN, *vocabulary()])
    image = MiniImageTower(batch_norm=True).to(memory_format=torch.channels_last)
    log: list[dict[str, Any]] = []
    train(plan, image, text, log)

    # Batch norm is folded into the convolutions: the shipped tower has none, so fine-tuning does
    # not depend on running statistics. Half precision halves the file.
    image.stem = image.stem.folded()
    towers = nn.ModuleDict({"image": image, "text": text})
    content = save(
        {name: tensor.detach().half().contiguous() for name, tensor in towers.state_dict().items()}
    )
    digest = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mini-clip.safetensors").write_bytes(content)
    card = {
        "weights": "mini-clip.safetensors",
        "sha256": digest,
        "seen": SEEN,
        "vocabulary": list(text.vocabulary),
    }
    _write_json(folder / "mini-clip.json", card)
    made_with = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    _write_json(
        folder / "mini-clip.log.json", {"plan": asdict(plan), "made_with": made_with, "log": log}
    )
    return digest


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Pre-train mini-clip; the plan's defaults made the shipped weights."
    )
    parser.add_argument("folder", type=Path, help="folder for the weights, their card and the log")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    print(pretrain(Plan(**options), folder))


if __name__ == "__main__":
    main()
