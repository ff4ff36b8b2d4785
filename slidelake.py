"""The front door: the `slidelake` command and the public Python API. It has no logic of its own.

Nothing heavy is imported before it is used, so that `--help` and `import slidelake` take no time.

Examples:
    >>> import slidelake as sl
    >>> lake = sl.open_lake("my-lake")
    >>> lake.bag("s01a", "uni2_h", mpp=0.5).features.shape
    (24, 1536)
"""

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from cluster import ClusterError, ClusterLostError, ExtensionError, WorkerSettings, extend
    from distill import DistillError, Recipe
    from distill.recipes.recipe_table import make_recipe
    from distill.students.feature_students import build_lake, extract
    from distill.targets.missing_stats import stats
    from distill.train.ray_train import distill
    from downstream import (
        BagError,
        CohortError,
        LeakageError,
        MilSettings,
        Plan,
        ProbeError,
        ProbeOptions,
        RobustnessError,
        RobustnessOptions,
        SplitError,
        StudyError,
        SurvivalError,
        SurvivalSettings,
        run_mil,
        run_robustness,
        run_survival,
        write_report,
    )
    from downstream.kept.kept_model import KeptModelError
    from downstream.kept.predict_patients import PatientPredictions, predict_patients
    from downstream.probes.tile_probe import run_probe
    from downstream.retrieval.search import run_search
    from downstream.retrieval.search_query import RetrievalError
    from downstream.run.fit_settings import SettingsError
    from examples.sample_slide import sample_slide
    from featurestore import (
        AccessError,
        Annotation,
        Bag,
        BucketDownError,
        BucketError,
        DamageError,
        FormatError,
        IdentityError,
        Lake,
        LakeConfig,
        LakeError,
        LakeMissingError,
        Pairs,
        TileBatch,
        Verdict,
        annotate,
        compact,
        copy_lake,
        create_lake,
        drop,
        open_lake,
        query,
        rename,
        repair,
        restore,
        vacuum,
        verify,
    )
    from featurestore.codecs.lance_quantising import Quantised, quantise
    from featurestore.errors import InUseError, LicenceError
    from featurestore.interop.foreign_slide import InteropError
    from featurestore.interop.hub.places import PlaceError
    from featurestore.read.stream import Stream
    from featurestore.read.torch_bags import Bags
    from featurestore.storage import DiskFullError
    from featurestore.tables.annotation import AnnotationError
    from featurestore.tables.slide_encoding import SlideEncoding
    from ingest import BuildResult, FieldError, InputError, SlideError, TeacherError
    from ingest.errors import SlideEncoderError
    from ingest.ray_ingest import IngestResult, ingest
    from ingest.slide_encoders import EncodeResult, SlideCard, encode
    from ingest.teachers.cards.card import Card
    from ingest.teachers.find_teacher import list_teachers
    from ingest.teachers.ray_extract import ExtractResult
    from ingest.tissue.own_segmenter import Segmenter

PACKAGES = ("cluster", "commands", "distill", "downstream", "examples", "featurestore", "ingest")

#: The Python API: where each public name lives.
PUBLIC = {
    "AccessError": "featurestore",
    "Annotation": "featurestore",
    "AnnotationError": "featurestore.tables.annotation",
    "Bag": "featurestore",
    "BagError": "downstream",
    "Bags": "featurestore.read.torch_bags",
    "BucketDownError": "featurestore",
    "BucketError": "featurestore",
    "BuildResult": "ingest",
    "Card": "ingest.teachers.cards.card",
    "ClusterError": "cluster",
    "ClusterLostError": "cluster",
    "CohortError": "downstream",
    "DamageError": "featurestore",
    "DiskFullError": "featurestore.storage",
    "DistillError": "distill",
    "EncodeResult": "ingest.slide_encoders",
    "ExtensionError": "cluster",
    "ExtractResult": "ingest.teachers.ray_extract",
    "FieldError": "ingest",
    "FormatError": "featurestore",
    "IdentityError": "featurestore",
    "InUseError": "featurestore.errors",
    "IngestResult": "ingest.ray_ingest",
    "InputError": "ingest",
    "InteropError": "featurestore.interop.foreign_slide",
    "KeptModelError": "downstream.kept.kept_model",
    "Lake": "featurestore",
    "LakeConfig": "featurestore",
    "LakeError": "featurestore",
    "LakeMissingError": "featurestore",
    "LeakageError": "downstream",
    "LicenceError": "featurestore.errors",
    "MilSettings": "downstream",
    "Pairs": "featurestore",
    "PatientPredictions": "downstream.kept.predict_patients",
    "PlaceError": "featurestore.interop.hub.places",
    "Plan": "downstream",
    "ProbeError": "downstream",
    "ProbeOptions": "downstream",
    "Quantised": "featurestore.codecs.lance_quantising",
    "Recipe": "distill",
    "RetrievalError": "downstream.retrieval.search_query",
    "RobustnessError": "downstream",
    "RobustnessOptions": "downstream",
    "Segmenter": "ingest.tissue.own_segmenter",
    "SettingsError": "downstream.run.fit_settings",
    "SlideCard": "ingest.slide_encoders",
    "SlideEncoderError": "ingest.errors",
    "SlideEncoding": "featurestore.tables.slide_encoding",
    "SlideError": "ingest",
    "SplitError": "downstream",
    "Stream": "featurestore.read.stream",
    "StudyError": "downstream",
    "SurvivalError": "downstream",
    "SurvivalSettings": "downstream",
    "TeacherError": "ingest",
    "TileBatch": "featurestore",
    "Verdict": "featurestore",
    "WorkerSettings": "cluster",
    "annotate": "featurestore",
    "build_lake": "distill.students.feature_students",
    "compact": "featurestore",
    "copy_lake": "featurestore",
    "create_lake": "featurestore",
    "distill": "distill.train.ray_train",
    "drop": "featurestore",
    "encode": "ingest.slide_encoders",
    "extend": "cluster",
    "extract": "distill.students.feature_students",
    "ingest": "ingest.ray_ingest",
    "list_teachers": "ingest.teachers.find_teacher",
    "make_recipe": "distill.recipes.recipe_table",
    "open_lake": "featurestore",
    "predict_patients": "downstream.kept.predict_patients",
    "quantise": "featurestore.codecs.lance_quantising",
    "query": "featurestore",
    "rename": "featurestore",
    "repair": "featurestore",
    "restore": "featurestore",
    "run_mil": "downstream",
    "run_probe": "downstream.probes.tile_probe",
    "run_robustness": "downstream",
    "run_search": "downstream.retrieval.search",
    "run_survival": "downstream",
    "sample_slide": "examples.sample_slide",
    "stats": "distill.targets.missing_stats",
    "vacuum": "featurestore",
    "verify": "featurestore",
    "write_report": "downstream.report.lake_page",
}

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


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name when it is first used."""
    if name not in PUBLIC:
        msg = f"module 'slidelake' has no attribute '{name}'"
        raise AttributeError(msg, name=name, obj=sys.modules[__name__])  # Python adds a similar one
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Return the public names, which completion offers; none of them is imported for it."""
    return list(__all__)


def check_packages(root: Path) -> None:
    """Raise ImportError if a package with one of our names is not ours.

    Raises:
        ImportError: a file of the user's, or another distribution, replaces one of
            the packages; the message names the file and what to do.
    """
    for name in PACKAGES:
        origin = _origin(name)
        if origin is None:
            msg = f"slidelake's package '{name}' is not in {root}; install slidelake anew"
            raise ImportError(msg)
        if origin != root / name / "__init__.py":
            raise ImportError(_in_the_way(name, origin, root))
        if not (root / name / "py.typed").exists():
            raise ImportError(_replacement_advice(name, origin))


def _origin(name: str) -> Path | None:
    """Return the file that `import name` reads, or has read."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec: a script's own, or one put there by hand
        return Path(str(getattr(sys.modules[name], "__file__", name))).resolve()
    if spec is None:
        return None
    if spec.origin is None:  # a folder without __init__.py
        return Path(next(iter(spec.submodule_search_locations or []), name)).resolve()
    return Path(spec.origin).resolve()


def _in_the_way(name: str, origin: Path, root: Path) -> str:
    """Return what to do about a file that is found before our package of the same name."""
    owners = _owners(origin)
    if owners:
        return (
            f"package '{name}' comes from {origin}, which is of {', '.join(owners)} and hides "
            f"slidelake's own in {root}: pip uninstall {owners[0]}, or install slidelake in an "
            "environment of its own"
        )
    path = origin.parent if origin.name == "__init__.py" else origin
    return (
        f"{path} has the name of slidelake's package '{name}' and is found before it (the folder "
        "of a script, or the one you work in, goes first): rename it, or run from another folder; "
        f"slidelake's own is {root / name}"
    )


def _replacement_advice(name: str, origin: Path) -> str:
    """Return what to do about a package that was installed over ours, in the same folder."""
    others = [owner for owner in _owners(origin) if owner != "slidelake"]
    who = ", ".join(others) or "something else"
    return (
        f"package '{name}' in {origin.parent} is not slidelake's: {who} was installed over it; "
        "install slidelake in an environment of its own"
    )


def _owners(origin: Path) -> list[str]:
    """Return the distributions that have installed a file."""
    import importlib.metadata  # needed for this alone, and slow to import

    return sorted(
        {
            distribution.name
            for distribution in importlib.metadata.distributions()
            for file in distribution.files or []
            if file.name == origin.name and Path(str(file.locate())).resolve() == origin
        }
    )


check_packages(Path(__file__).resolve().parent)

# only now: what is imported is known to be ours
from commands.command_table import add_commands

app = typer.Typer(
    help="Whole-slide images in once, every teacher run once, everything after that reads a lake.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
add_commands(app)


def _print_version(context: typer.Context, is_given: bool) -> None:
    """Print the version and end, if `--version` is given."""
    if is_given and not context.resilient_parsing:
        import importlib.metadata  # slow to import, and needed for this alone

        try:
            version = importlib.metadata.version("slidelake")
        except importlib.metadata.PackageNotFoundError:
            version = f"of {Path(__file__).resolve().parent}, which is not installed"
        typer.echo(f"slidelake {version}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    extensions: Annotated[
        list[str] | None,
        typer.Option(
            "--extend",
            metavar="FILE",
            help="Run a Python file of your own that adds readers, scores, aggregators, terms, "
            "recipes or formats, here and in all workers. Repeatable.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Give the metrics of the Ray that the command starts at this port of 127.0.0.1, "
            "for Prometheus; without it no port is open.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Whole-slide images in once, every teacher run once, everything after that reads a lake."""
    if debug:
        os.environ["SLIDELAKE_DEBUG"] = "1"
    if metrics_port:
        os.environ["SLIDELAKE_METRICS_PORT"] = str(metrics_port)
    if extensions:
        from cluster import extend

        extend(*extensions)


#: Exit code of a command that was stopped by Ctrl-C, as shells have it.
INTERRUPTED = 130
WRONG_USAGE, OUR_FAULT = 2, 3
#: Exit codes of errors of ours that are no wrong usage: damage, and what failed beneath a command
#: (cluster, bucket, disk), after which the same command goes on.
EXIT_CODES = {"DamageError": 1, "ClusterLostError": 4, "BucketDownError": 4, "DiskFullError": 4}


def main() -> None:
    """Run the command; print an error as one line on stderr, or its traceback with --debug."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer takes KeyboardInterrupt and returns its code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        text = "slidelake: stopped; what is committed stays, and the same command goes on"
        typer.echo(text, err=True)
        sys.exit(INTERRUPTED)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the last one; a panic in Rust is no Exception
        sys.exit(_explain(error))


def _explain(error: BaseException) -> int:
    """Print an error, and return the exit code: see `EXIT_CODES`; 3 is for all that is not ours."""
    if isinstance(error, TyperException):
        if not error.format_message():  # the help was printed, as there was no command
            return error.exit_code
        typer.echo(f"slidelake: {error.format_message()} (slidelake --help)", err=True)
        return error.exit_code
    if os.environ.get("SLIDELAKE_DEBUG"):
        traceback.print_exc()
    if "featurestore" in sys.modules:  # no need to import it for an error of something else
        from featurestore.storage import LakeUri, disk_full_error, is_of_lance, meaning_of

        error = disk_full_error(error, "the lake or of temporary files") or error
        if is_of_lance(error):
            error = meaning_of(error, LakeUri(""), "the lake can't be read")
    text = " ".join(str(error).split()) or type(error).__name__
    ours = type(error).__module__.partition(".")[0] in PACKAGES
    if not ours:
        text = f"{type(error).__name__}: {text} (slidelake --debug shows where)"
    typer.echo(f"slidelake: {text}", err=True)
    if not ours:
        return OUR_FAULT
    return EXIT_CODES.get(type(error).__name__, WRONG_USAGE)


if __name__ == "__main__":
    main()
