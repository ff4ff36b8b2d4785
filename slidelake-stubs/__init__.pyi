# Types of the public Python API for type checkers: `slidelake` is one module, and a module has no
# py.typed of its own. tests/project/test_installing.py compares it with slidelake.py.
import pathlib

import typer

from cluster import extend as extend
from distill.recipes.recipe_table import make_recipe as make_recipe
from distill.students.feature_students import extract as extract
from distill.targets.missing_stats import stats as stats
from distill.train.ray_train import distill as distill
from downstream import run_mil as run_mil
from downstream import run_survival as run_survival
from downstream import write_report as write_report
from downstream.probes.tile_probe import run_probe as run_probe
from downstream.retrieval.search import run_search as run_search
from featurestore import Lake as Lake
from featurestore import LakeConfig as LakeConfig
from featurestore import annotate as annotate
from featurestore import compact as compact
from featurestore import copy_lake as copy_lake
from featurestore import create_lake as create_lake
from featurestore import drop as drop
from featurestore import open_lake as open_lake
from featurestore import query as query
from featurestore import rename as rename
from featurestore import repair as repair
from featurestore import restore as restore
from featurestore import vacuum as vacuum
from featurestore import verify as verify
from ingest import Card as Card
from ingest.ray_ingest import ingest as ingest
from ingest.teachers.find_teacher import list_teachers as list_teachers
from ingest.tissue.own_segmenter import Segmenter as Segmenter

PACKAGES: tuple[str, ...]
PUBLIC: dict[str, str]
app: typer.Typer

def check_packages(root: pathlib.Path) -> None: ...
def main() -> None: ...

__all__ = [
    "Card",
    "Lake",
    "LakeConfig",
    "Segmenter",
    "annotate",
    "compact",
    "copy_lake",
    "create_lake",
    "distill",
    "drop",
    "extend",
    "extract",
    "ingest",
    "list_teachers",
    "make_recipe",
    "open_lake",
    "query",
    "rename",
    "repair",
    "restore",
    "run_mil",
    "run_probe",
    "run_search",
    "run_survival",
    "stats",
    "vacuum",
    "verify",
    "write_report",
]
