"""A pass over a split reads the next batch while it computes, and every image once."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.evaluation.forward import logits_of
from bench.training.engine import Engine


class Pictures:
    """Seven images whose pixels are their row."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.second = threading.Event()

    def __len__(self) -> int:
        return 7

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.taken += rows.tolist()
        if len(self.taken) > 3:
            self.second.set()
        return np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 2, 2, 3)).copy()


class Mean(nn.Module):
    """Computes only once the second batch was asked for."""

    def __init__(self, pictures: Pictures) -> None:
        super().__init__()
        self.pictures = pictures

    def forward(self, images: Tensor) -> Tensor:
        assert self.pictures.second.wait(20)
        return images.mean(dim=(1, 2, 3))[:, None] * 255


def test_the_next_batch_is_read_while_one_is_computed_on() -> None:
    pictures: Any = Pictures()
    models: Any = {"it": Mean(pictures)}
    told: list[tuple[int, int]] = []
    logits = logits_of(models, pictures, Engine(eval_batch=3), lambda done, of: told.append((done, of)))
    assert torch.from_numpy(logits["it"]).flatten().round().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert pictures.taken == [0, 1, 2, 3, 4, 5, 6]
    assert told == [(3, 7), (6, 7), (7, 7)]
