"""`slidelake encode`: columns of tile features to vectors of slides and patients."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.progress_text import counted
from commands.options.completion import complete_teacher
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, QuietOpt

if TYPE_CHECKING:
    from ingest.slide_encoders import EncodeResult

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Options of `slidelake encode`.

    Attributes:
        slide_encoder: mean, max, pca, gigapath_slide, titan and others (docs/slide_encoders.md has
            all), or the path of a Python file of your own.
        features: Column of tile features that it reads; repeat for an encoder of several.
        mpp: Microns per pixel of the tiles; the only one of the lake if not given.
        by: What gets a vector: a slide, a patient (the tiles of all slides), or each section of
            tissue on a slide.
        name: Name of the vectors; ENCODER.COLUMN if not given.
        weights: Folder with the encoder's weights as NAME.safetensors; SLIDELAKE_WEIGHTS if not
            given.
        code: Folder of the authors' own code or model, for encoders that run it.
        device: Where the encoder runs; a GPU if there is one.
        any_inputs: Feed the column also where the encoder was trained on other tiles or features;
            the vectors keep what they were made of.
    """

    lake: LakeArg
    slide_encoder: Annotated[str, typer.Option("--slide-encoder"), PathKind.PYTHON]
    features: Annotated[
        tuple[str, ...],
        typer.Option("--features", metavar="COLUMN", autocompletion=complete_teacher),
    ]
    mpp: float | None = None
    by: Literal["slide", "patient", "section"] = "slide"
    name: str | None = None
    weights: Annotated[str | None, typer.Option(metavar="DIR"), PathKind.WEIGHTS] = None
    code: Annotated[str | None, typer.Option(metavar="DIR"), PathKind.WEIGHTS] = None
    device: Literal["cpu", "cuda"] | None = None
    any_inputs: Annotated[bool, typer.Option("--any-inputs")] = False
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "encode")
def encode_command(options: EncodeOptions) -> None:
    """Make one vector of each slide or patient from the cached features of its tiles.

    Examples: slidelake encode my-lake --slide-encoder mean --features uni2_h
    or: slidelake encode my-lake --slide-encoder titan --features conch15 --weights ~/weights
    or: slidelake encode my-lake --slide-encoder my_encoder.py --features uni2_h --by patient

    The vectors are called ENCODER.COLUMN, as mean.uni2_h, and are read by that name: mil, survival
    and search take it as --features, `slidelake query` has the table slide_features. The same
    command goes on where it was stopped, and encodes slides that were added or have changed. An
    encoder that was trained on other tiles is refused, with what it would be fed.
    """
    from ingest.slide_encoders import encode

    encoded = encode(
        options.lake,
        options.slide_encoder,
        features=options.features,
        mpp=options.mpp,
        by=options.by,
        name=options.name,
        weights=options.weights,
        code=options.code,
        device=options.device,
        any_inputs=options.any_inputs,
    )
    failures = encoded.failed
    print_answer(
        asdict(encoded),
        as_json=options.json,
        errors=[f"{encoded.unit} {one['name']} failed: {one['reason']}" for one in failures],
        text="\n".join(encode_lines(encoded)),
    )
    raise typer.Exit(1 if failures else 0)


def encode_lines(encoded: "EncodeResult") -> list[str]:
    """Return what was encoded in lines; the last one is the outcome."""
    lines = []
    if encoded.differences:
        lines.append(f"fed {'; '.join(encoded.differences)}, which it was not trained on")
    if encoded.waiting:
        count = counted(len(encoded.waiting), encoded.unit, "lack")
        lines.append(f"{count} tile features: slidelake extract makes them, then encode again")
    lines.append(f"licence {encoded.licence}")
    new = f"{counted(encoded.encoded, encoded.unit)} encoded in {encoded.seconds:.1f} s"
    lines.append(
        f"{encoded.name} at mpp {encoded.mpp}: {new}, {encoded.vectors:,} in the lake, "
        f"{encoded.dim} numbers each, version {encoded.version}"
    )
    return lines
