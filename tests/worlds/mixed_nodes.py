"""Distillation from a driver that may compute nothing, on a Ray whose nodes have several sizes.

The head, where the driver lives, has no CPUs; the nodes are processes of this machine. What would
run a network or read features raises in the driver, and runs in the workers as it is.
"""

import json
import sys
from typing import Any, NoReturn

from ray.cluster_utils import Cluster

from cluster import ClusterError, WorkerSettings
from distill.evaluate import ray_evaluation
from distill.evaluate.evaluation_spec import EvaluationSpec
from distill.recipes.recipe import Recipe
from distill.recipes.recipe_table import make_recipe
from distill.students import feature_columns
from distill.students.feature_students import extract
from distill.train.ray_train import distill
from featurestore.stats import fitting

TINY = {"architecture": "test_vit", "input_px": 32, "arguments": {"patch_size": 8}}
SMALL = {"batch_tiles": 16, "epochs": 1, "head_width": 16, "mpps": (2.0,)}


def _refused(*_: object, **__: object) -> NoReturn:
    msg = "this ran in the driver"
    raise AssertionError(msg)


def main(lake: str, *teachers: str) -> dict[str, Any]:
    """Train a student of pixels and one of features, make its column, and evaluate."""
    for module, name in (
        (ray_evaluation, "evaluate"),
        (feature_columns, "make_columns"),
        (fitting, "feature_blocks"),
    ):
        setattr(module, name, _refused)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for cpus in (1, 2):
            nodes.add_node(num_cpus=cpus)
        nodes.wait_for_nodes()
        return stages(lake, teachers, str(nodes.address))
    finally:
        nodes.shutdown()


def stages(lake: str, teachers: tuple[str, ...], address: str) -> dict[str, Any]:
    """Run the stages; return the sizes that they had."""
    pixels = make_recipe("agglomerate", teachers, **TINY, **SMALL)
    two = WorkerSettings(workers=2, cpus_per_worker=1)
    small = distill(lake, pixels, name="small", workers=two, address=address)
    fused = make_recipe("shazam", teachers, width=16, blocks=1, **SMALL)
    large = WorkerSettings(cpus_per_worker=2)
    mixed = distill(lake, fused, name="mixed", workers=large, address=address)
    made = extract(lake, ["mixed"], address=address, workers=large)
    spec = EvaluationSpec(tiles=32, robust_tiles=2, teacher_seconds=0, device="cpu")
    judged = ray_evaluation.evaluate_there(
        lake, ["small"], spec, address=address, cpus_per_worker=2
    )
    refused = _refusal(lake, pixels, address)
    return {
        "small": [small["workers"], small["cpus_per_worker"]],
        "mixed": [mixed["workers"], mixed["cpus_per_worker"]],
        "tiles": made.teachers["mixed"]["tiles"],
        "threads": judged["settings"]["threads"],
        "refused": refused,
    }


def _refusal(lake: str, recipe: Recipe, address: str) -> str:
    """Return the refusal of workers that no node holds."""
    too_large = WorkerSettings(cpus_per_worker=3)
    try:
        distill(lake, recipe, name="none", workers=too_large, address=address)
    except ClusterError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
