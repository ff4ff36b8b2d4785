"""Encoders in torch: from a card and its weights to embeddings of tiles. No Ray, no lake.

Letters in names: B tiles in a batch, C channels, H W pixels, D embedding.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import simplejpeg
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingest.cards import Card
from ingest.errors import TeacherError

# A CPU's cache holds the early activations of about this many pixels: 4 tiles of 224 px at a time
# run 1.4-1.8 times as fast as 32 (one core, efficientnet_lite0/1; docs/decisions.md).
CACHED_PIXELS = 4 * 224**2

RgbArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


class TimmEncoder:
    """A timm network with the weights of a file.

    Args:
        card: what is run and how.
        weights: a .safetensors file, or a PyTorch state dict, which is read without unpickling
            objects.
        threads: parts of a batch that are computed at the same time, each by one thread: the
            numbers then do not depend on how many there are, as they would within an operation.

    Raises:
        TeacherError: the file does not fit the card's architecture.
    """

    def __init__(self, card: Card, weights: Path, *, threads: int = 1) -> None:
        self.card = card
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._model = build(card.architecture, card.input_px)
        load_weights(self._model, weights, card)
        self._model.eval().requires_grad_(requires_grad=False)
        self._model.to(memory_format=torch.channels_last)

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> FloatArray:
        """Embeddings [B, D] of RGB tiles [B, H, W, 3]."""
        sized = resized(tiles, self.card.input_px, self.card.interpolation)
        x_BCHW = preprocess(sized, self.card.mean, self.card.std)
        part = max(1, CACHED_PIXELS // self.card.input_px**2)
        parts = self._pool.map(self._embed, torch.split(x_BCHW, part))
        embedded: FloatArray = torch.cat(list(parts)).float().numpy()
        return embedded

    def _embed(self, x_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            embedding: Tensor = self._model(x_BCHW)
            return embedding


def build(architecture: str, input_px: int) -> nn.Module:
    """A timm network without its classifier, for square inputs of `input_px`."""
    sized = {"img_size": input_px} if "vit" in architecture else {}
    model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **sized)
    return model


def load_weights(model: nn.Module, weights: Path, card: Card) -> None:
    """Fill a network from a file; names may differ if number, order and shapes are the same.

    Raises:
        TeacherError: they are not, beyond a classifier at the end of the file.
    """
    if weights.suffix == ".safetensors":
        found = safetensors.torch.load_file(weights)
    else:
        found = torch.load(weights, map_location="cpu", weights_only=True)
    wanted = model.state_dict()
    if not set(wanted) <= set(found):
        # The same network under another implementation's names: tensor by tensor in order.
        found = dict(zip(wanted, found.values(), strict=False))
    wrong = [
        name for name in wanted if name not in found or found[name].shape != wanted[name].shape
    ]
    if wrong:
        msg = (
            f"{weights.name} does not hold the weights of {card.architecture} "
            f"({len(wrong)} of {len(wanted)} tensors differ, first {wrong[0]})"
        )
        raise TeacherError(msg)
    model.load_state_dict({name: found[name] for name in wanted})


def decode(jpeg: bytes) -> RgbArray:
    """Pixels [H, W, 3] of a stored tile."""
    rgb: RgbArray = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    return rgb


def resized(tiles: npt.NDArray[np.uint8], side_px: int, how: str) -> npt.NDArray[np.uint8]:
    """Tiles [B, H, W, 3] as squares of `side_px`, antialiased as PIL and torchvision do it."""
    if tiles.shape[1] == side_px == tiles.shape[2]:
        return tiles
    x_BCHW = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    sized = F.interpolate(x_BCHW, (side_px, side_px), mode=how, antialias=True)
    pixels: npt.NDArray[np.uint8] = sized.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def preprocess(
    tiles: npt.NDArray[np.uint8],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Tensor:
    """Normalised float32 [B, C, H, W], laid out channels last, of RGB tiles [B, H, W, 3]."""
    x_BHWC = torch.from_numpy(tiles).to(torch.float32)
    scale = 1 / (255 * torch.tensor(std))
    shift = torch.tensor(mean) / torch.tensor(std)
    # A permuted view of [B, H, W, C] is channels_last already: no copy.
    return x_BHWC.mul_(scale).sub_(shift).permute(0, 3, 1, 2)
