"""`slidelake quantise`: a teacher's column once more, in fewer bytes."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from cluster import progress
from cluster.progress_text import counted
from commands.options.completion import complete_teacher
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, MppsOpt, QuietOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class QuantiseOptions:
    """Options of `slidelake quantise`.

    Attributes:
        features: Name of the column.
        codec: int8 (half the bytes), or pq4, pq8, pq16, pq32, pq64 (that many times fewer bytes).
        seed: Random seed of the tiles on which the codec is fitted.
    """

    lake: LakeArg
    features: Annotated[str, typer.Option(autocompletion=complete_teacher)]
    codec: str = "int8"
    mpps: MppsOpt = ()
    seed: int = 0
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "quantise")
def quantise_command(options: QuantiseOptions) -> None:
    """Write a column's features in fewer bytes, as a column NAME~CODEC beside it.

    It is read as any other, by its name: features are decoded to float16. What that costs is said
    in cosine and relative error; docs/quantised.md has what it costs in tasks. The same command
    goes on where it was stopped, and quantises slides that were added.

    Example: slidelake quantise my-lake --features uni2_h --codec pq16
    """
    from featurestore import open_lake
    from featurestore.codecs.lance_quantising import quantise

    with ExitStack() as stack:
        bars: list[Any] = []

        def on_plan(tiles: int) -> None:
            stack.close()
            bars[:] = [stack.enter_context(progress("quantise", total=tiles, unit="tiles"))]

        made = quantise(
            open_lake(options.lake),
            options.features,
            codec=options.codec,
            mpps=options.mpps,
            seed=options.seed,
            on_plan=on_plan,
            on_tiles=lambda tiles: bars[0].advance(tiles),
        )
    lines = [
        f"{one.column} at mpp {one.mpp}: {counted(one.tiles, 'tile')} more, "
        f"{one.bytes_per_tile:,} bytes a tile ({one.source_bytes_per_tile:,} before); cosine "
        f"{one.cosine:.4f} (least {one.cosine_least:.4f}), relative error {one.error:.3f}"
        f"{_clipped_text(one.clipped)}"
        for one in made
    ]
    answer = {"columns": [asdict(one) for one in made]}
    print_answer(answer, as_json=options.json, text="\n".join(lines))


def _clipped_text(share: float) -> str:
    """Return a note on values beyond the range on which int8 was fitted; empty without any."""
    return f"; {share:.2%} of the values are beyond the fitted range" if share else ""
