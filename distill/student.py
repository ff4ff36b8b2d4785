"""The student: a small timm network with one head per teacher; only the network is kept for use.

Letters in names: B samples, C channels, H W pixels, D embedding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.heads import mlp_head
from distill.recipes import Recipe
from ingest.cards import Card, Interpolation
from ingest.networks import build

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
INTERPOLATION: Interpolation = "bicubic"


class Student(nn.Module):
    """A trunk, and heads that predict each teacher's standardised features from its embedding.

    Args:
        recipe: names the trunk's architecture and the width of the heads.
        dims: each teacher's dimension.
    """

    def __init__(self, recipe: Recipe, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.trunk = build(recipe.architecture, recipe.input_px)
        with torch.no_grad():
            probe = torch.zeros(2, 3, recipe.input_px, recipe.input_px)
            self.dim = int(self.trunk(probe).shape[-1])
        # Module names may not hold dots or be empty: a teacher's place in the recipe is its name.
        self.teachers = tuple(dims)
        self.heads = nn.ModuleList(
            mlp_head(self.dim, recipe.head_width, dims[name]) for name in self.teachers
        )

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Standardised predictions [B, D] per teacher."""
        embedding = self.trunk(x_BCHW)
        return {name: head(embedding) for name, head in zip(self.teachers, self.heads, strict=True)}


def student_card(recipe: Recipe, name: str, dim: int, licences: Mapping[str, str]) -> Card:
    """How the student is run as a teacher."""
    return Card(
        name=name,
        architecture=recipe.architecture,
        dim=dim,
        input_px=recipe.input_px,
        interpolation=INTERPOLATION,
        mean=MEAN,
        std=STD,
        licence="; ".join(f"{teacher}: {text}" for teacher, text in licences.items()),
        source=f"distilled by recipe {recipe.name} from {', '.join(recipe.teachers)}",
    )
