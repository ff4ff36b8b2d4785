"""`slidelake compact`: small fragments merged."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, QuietOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class CompactOptions:
    """Options of `slidelake compact`.

    Attributes:
        rows: Most tiles in a merged fragment.
    """

    lake: LakeArg
    rows: Annotated[int, typer.Option(min=1)] = 250_000
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "compact")
def compact_command(options: CompactOptions) -> None:
    """Merge the small fragments that many small ingests leave, and drop replaced rows for good."""
    from cluster import progress
    from featurestore import compact, open_lake

    with progress("compact", total=None, unit="fragments") as bar:
        merged = compact(open_lake(options.lake), rows=options.rows, on_group=bar.advance)
    text = (
        f"{merged.before} fragments became {merged.after}; `slidelake vacuum` frees the old files"
    )
    print_answer(asdict(merged), as_json=options.json, text=text)
