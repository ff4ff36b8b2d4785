"""One `distill` of a tiny student, as a process of its own that a test can kill."""

import sys

from cluster import WorkerSettings
from distill.recipes.recipe_table import make_recipe
from distill.train.ray_train import distill
from tests.conftest import TEACHERS

TINY = {
    "architecture": "test_efficientnet",
    "input_px": 32,
    "head_width": 16,
    "batch_tiles": 16,
    "epochs": 8,
}


def train(lake: str, name: str, workers: int) -> None:
    """Train the student, with checkpoints as often as they can be."""
    recipe = make_recipe("agglomerate", TEACHERS, **TINY, mpps=(0.5,))
    distill(lake, recipe, name=name, workers=WorkerSettings(workers=workers), checkpoint_s=0.5)


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]))
