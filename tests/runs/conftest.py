"""A pre-trained CLIP model in miniature, fine-tuned, and as a backbone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.foreign_checkpoints import CLIP, CONFIG, QuickGELU, folder_of


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    """The pre-trained CLIP model."""
    torch.manual_seed(0)
    return CLIP(QuickGELU).state_dict()


@pytest.fixture
def tuned(original: dict[str, Tensor]) -> CLIP:
    """The same model after some training."""
    model = CLIP(QuickGELU)
    torch.manual_seed(1)
    model.load_state_dict(
        {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in original.items()}
    )
    return model.eval()


@pytest.fixture(scope="module")
def backbone(original: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of(original, tmp_path_factory.mktemp("clip"), CONFIG)
