# Types of the public Python API for type checkers: `slidelake` is one module, and a module has no
# py.typed of its own. tests/project/test_installing.py compares it with slidelake.py.
import pathlib

import typer

from cluster import ClusterError as ClusterError
from cluster import ClusterLostError as ClusterLostError
from cluster import ExtensionError as ExtensionError
from cluster import WorkerSettings as WorkerSettings
from cluster import extend as extend
from distill import DistillError as DistillError
from distill import Recipe as Recipe
from distill.recipes.recipe_table import make_recipe as make_recipe
from distill.students.feature_students import build_lake as build_lake
from distill.students.feature_students import extract as extract
from distill.targets.missing_stats import stats as stats
from distill.train.ray_train import distill as distill
from downstream import BagError as BagError
from downstream import CohortError as CohortError
from downstream import LeakageError as LeakageError
from downstream import MilSettings as MilSettings
from downstream import Plan as Plan
from downstream import ProbeError as ProbeError
from downstream import ProbeOptions as ProbeOptions
from downstream import RobustnessError as RobustnessError
from downstream import RobustnessOptions as RobustnessOptions
from downstream import SplitError as SplitError
from downstream import StudyError as StudyError
from downstream import SurvivalError as SurvivalError
from downstream import SurvivalSettings as SurvivalSettings
from downstream import run_mil as run_mil
from downstream import run_robustness as run_robustness
from downstream import run_survival as run_survival
from downstream import write_report as write_report
from downstream.kept.kept_model import KeptModelError as KeptModelError
from downstream.kept.predict_patients import PatientPredictions as PatientPredictions
from downstream.kept.predict_patients import predict_patients as predict_patients
from downstream.probes.tile_probe import run_probe as run_probe
from downstream.retrieval.search import run_search as run_search
from downstream.retrieval.search_query import RetrievalError as RetrievalError
from downstream.run.fit_settings import SettingsError as SettingsError
from examples.sample_slide import sample_slide as sample_slide
from featurestore import AccessError as AccessError
from featurestore import Annotation as Annotation
from featurestore import Bag as Bag
from featurestore import BucketDownError as BucketDownError
from featurestore import BucketError as BucketError
from featurestore import DamageError as DamageError
from featurestore import FormatError as FormatError
from featurestore import IdentityError as IdentityError
from featurestore import Lake as Lake
from featurestore import LakeConfig as LakeConfig
from featurestore import LakeError as LakeError
from featurestore import LakeMissingError as LakeMissingError
from featurestore import Pairs as Pairs
from featurestore import TileBatch as TileBatch
from featurestore import Verdict as Verdict
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
from featurestore.codecs.lance_quantising import Quantised as Quantised
from featurestore.codecs.lance_quantising import quantise as quantise
from featurestore.errors import InUseError as InUseError
from featurestore.errors import LicenceError as LicenceError
from featurestore.interop.foreign_slide import InteropError as InteropError
from featurestore.interop.hub.places import PlaceError as PlaceError
from featurestore.read.stream import Stream as Stream
from featurestore.read.torch_bags import Bags as Bags
from featurestore.storage import DiskFullError as DiskFullError
from featurestore.tables.annotation import AnnotationError as AnnotationError
from featurestore.tables.slide_encoding import SlideEncoding as SlideEncoding
from ingest import BuildResult as BuildResult
from ingest import FieldError as FieldError
from ingest import InputError as InputError
from ingest import SlideError as SlideError
from ingest import TeacherError as TeacherError
from ingest.errors import SlideEncoderError as SlideEncoderError
from ingest.ray_ingest import IngestResult as IngestResult
from ingest.ray_ingest import ingest as ingest
from ingest.slide_encoders import EncodeResult as EncodeResult
from ingest.slide_encoders import SlideCard as SlideCard
from ingest.slide_encoders import encode as encode
from ingest.teachers.cards.card import Card as Card
from ingest.teachers.find_teacher import list_teachers as list_teachers
from ingest.teachers.ray_extract import ExtractResult as ExtractResult
from ingest.tissue.own_segmenter import Segmenter as Segmenter

PACKAGES: tuple[str, ...]
PUBLIC: dict[str, str]
app: typer.Typer

def check_packages(root: pathlib.Path) -> None: ...
def main() -> None: ...
def __dir__() -> list[str]: ...

__all__ = [
    "AccessError",
    "Annotation",
    "AnnotationError",
    "Bag",
    "BagError",
    "Bags",
    "BucketDownError",
    "BucketError",
    "BuildResult",
    "Card",
    "ClusterError",
    "ClusterLostError",
    "CohortError",
    "DamageError",
    "DiskFullError",
    "DistillError",
    "EncodeResult",
    "ExtensionError",
    "ExtractResult",
    "FieldError",
    "FormatError",
    "IdentityError",
    "InUseError",
    "IngestResult",
    "InputError",
    "InteropError",
    "KeptModelError",
    "Lake",
    "LakeConfig",
    "LakeError",
    "LakeMissingError",
    "LeakageError",
    "LicenceError",
    "MilSettings",
    "Pairs",
    "PatientPredictions",
    "PlaceError",
    "Plan",
    "ProbeError",
    "ProbeOptions",
    "Quantised",
    "Recipe",
    "RetrievalError",
    "RobustnessError",
    "RobustnessOptions",
    "Segmenter",
    "SettingsError",
    "SlideCard",
    "SlideEncoderError",
    "SlideEncoding",
    "SlideError",
    "SplitError",
    "Stream",
    "StudyError",
    "SurvivalError",
    "SurvivalSettings",
    "TeacherError",
    "TileBatch",
    "Verdict",
    "WorkerSettings",
    "annotate",
    "build_lake",
    "compact",
    "copy_lake",
    "create_lake",
    "distill",
    "drop",
    "encode",
    "extend",
    "extract",
    "ingest",
    "list_teachers",
    "make_recipe",
    "open_lake",
    "predict_patients",
    "quantise",
    "query",
    "rename",
    "repair",
    "restore",
    "run_mil",
    "run_probe",
    "run_robustness",
    "run_search",
    "run_survival",
    "sample_slide",
    "stats",
    "vacuum",
    "verify",
    "write_report",
]
