"""`slidelake verify`: a lake compared with its catalog."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cluster.progress_text import counted
from commands.lakes.damage_lines import advice, damage_line
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg, QuietOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of `slidelake verify`.

    Attributes:
        sample: Share of slides to read in full: a quick look.
    """

    lake: LakeArg
    sample: Annotated[float, typer.Option(min=0, max=1)] = 1.0
    at: AtOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "verify")
def verify_command(options: VerifyOptions) -> None:
    """Compare a lake with its catalog: counts, keys, checksums, files. Exit code 1 on damage.

    Names slides, teachers and tables; if a table is damaged, also the versions that are whole.

    Example: slidelake verify my-lake --sample 0.05
    """
    from commands.lakes.isolated_verify import verify_isolated

    verdict = verify_isolated(options.lake, at=options.at, sample=options.sample)
    answer = verdict.as_dict()
    lines = [_checked_line(answer)]
    lines += [
        f"{count:,} {name} have no checksum: `slidelake repair --checksums` adds them"
        for name, count in verdict.unchecked.items()
    ]
    if parts := verdict.parts["files"]:
        lines.append(
            f"{counted(parts, 'part')} of columns ({verdict.parts['bytes'] / 1e6:,.0f} MB) of an "
            "extract that is at work or was cut short: it goes on from them, and "
            "`slidelake vacuum` removes them"
        )
    if not verdict.ok:
        lines.append(advice(options.lake, verdict))
    print_answer(
        answer,
        as_json=options.json,
        errors=[damage_line(damage) for damage in answer["damage"]],
        text="\n".join(lines),
        summary=lines[0],
    )
    raise typer.Exit(0 if verdict.ok else 1)


def _checked_line(verdict: dict[str, Any]) -> str:
    checked = verdict["checked"]
    return (
        f"version {verdict['version']}: {counted(checked['slides'], 'slide')}, "
        f"{counted(checked['tiles'], 'tile')}, "
        f"{checked['features']:,} bags of features, {checked['shards']:,} shards, "
        f"{checked['bytes'] / 1e6:,.0f} MB read: "
        + ("all as it was committed" if verdict["ok"] else f"{len(verdict['damage'])} damaged")
    )
