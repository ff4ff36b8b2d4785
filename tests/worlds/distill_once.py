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


def main() -> None:
    """LAKE NAME WORKERS: checkpoints come as often as they can."""
    lake, name, workers = sys.argv[1:]
    recipe = make_recipe("agglomerate", TEACHERS, **TINY, mpps=(0.5,))
    together = WorkerSettings(workers=int(workers))
    distill(lake, recipe, name=name, workers=together, checkpoint_s=0.5)


if __name__ == "__main__":
    main()
