"""From a recipe and a lake to what is trained."""

from distill.recipes.recipe import FusionStudent, Recipe, TileStudent
from distill.recipes.recipe_columns import columns_of
from distill.students.fusion import FusionTask
from distill.students.task import Norms, Task
from distill.students.tile_task import TileTask
from distill.terms.region_task import RegionTask
from featurestore import Lake


def make_task(lake: Lake, recipe: Recipe, norms: Norms) -> Task:
    """The task of a recipe, with random weights.

    Args:
        lake: whose columns the recipe's teachers are.
        recipe: of any kind of student.
        norms: of the targets, where they are to be used.
    """
    columns = columns_of(lake, recipe)
    if isinstance(recipe.student, TileStudent):
        _, under = recipe.levels_of(lake.config.mpps)
        return TileTask(recipe, columns, norms, fine=under[-1] if under else None)
    dims = {column.name: column.dim for column in columns}
    if isinstance(recipe.student, FusionStudent):
        return FusionTask(recipe, dims, norms)
    return RegionTask(recipe, dims, norms)
