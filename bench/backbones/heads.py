"""The zero-shot head: class prompts through the text tower (Radford et al., 2021; recipe of Wortsman et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .backbone import Head, TextTower


@torch.no_grad()
def zero_shot_head(
    text: TextTower,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    device: str = "cpu",
    batch: int = 512,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Head:
    """Head whose row c is scale * m/|m|, with m the mean over templates of the normalised prompt embeddings.

    The bias starts at 0 and stays trainable; the head normalises features. Prompts of several classes share a batch.

    Args:
        classes: C class names. templates: T prompts with one `{}` each.
        batch: prompts per forward pass of the text tower.
        progress: called after every batch with the prompts done and all of them; may raise to stop.
    """
    text = text.to(device).eval()
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    rows: list[Tensor] = []
    for first in range(0, len(prompts), batch):
        embedding = text(text.tokenize(prompts[first : first + batch]).to(device)).float()
        rows.append(embedding / embedding.norm(dim=-1, keepdim=True))
        progress(min(first + batch, len(prompts)), len(prompts))
    mean = torch.cat(rows).reshape(len(classes), len(templates), -1).mean(dim=1)
    return Head((text.scale * mean / mean.norm(dim=-1, keepdim=True)).cpu(), normalize=True)
