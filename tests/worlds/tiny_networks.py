"""Teacher networks of two blocks with random weights, and files of them, for tests."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ingest.teachers.cards.card import Card
from ingest.teachers.cards.card_table import CARDS
from ingest.teachers.networks import build
from ingest.teachers.weights.weight_keys import load_weights

Tensors = dict[str, Tensor]
TINY = {"embed_dim": 48, "num_heads": 4, "depth": 2}


def small(name: str, **arguments: object) -> Card:
    """A card's network, narrower and of two blocks, under the same names."""
    return replace(CARDS[name], arguments={**CARDS[name].arguments, **TINY, **arguments})


def network(card: Card) -> Any:  # noqa: ANN401 - timm's protocol has no type
    return build(card.architecture, card.input_px, card.arguments).eval()


def randomised(model: nn.Module) -> Tensors:
    """Random values for all that a network keeps, so that a tensor out of place shows."""
    torch.manual_seed(1)
    return {
        name: tensor
        if not tensor.is_floating_point()
        else torch.rand(tensor.shape) + 0.5
        if name.endswith("running_var")
        else torch.randn(tensor.shape) * 0.1 + (re.search(r"norm\d?\.weight", name) is not None)
        for name, tensor in model.state_dict().items()
    }


def saved(path: Path, state: object) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, path)  # type: ignore[attr-defined]
    else:
        torch.save(state, path)
    return path


def loaded(card: Card, path: Path) -> Any:  # noqa: ANN401
    model = network(card)
    load_weights(model, path, card)
    return model


def images(card: Card) -> Tensor:
    return torch.randn(2, 3, card.input_px, card.input_px, generator=torch.manual_seed(2))


@torch.inference_mode()
def tokens(model: Any, card: Card) -> Tensor:  # noqa: ANN401
    tokens_BND: Tensor = model.forward_features(images(card))
    return tokens_BND
