"""`slidelake repair`: damaged parts removed or rebuilt."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cluster.progress import is_quiet
from cluster.progress_text import counted
from commands.lakes.damage_lines import advice, damage_line
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, QuietOpt

if TYPE_CHECKING:
    from featurestore import Verdict
    from featurestore.keep import Repaired, RepairPlan

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """Options of `slidelake repair`.

    Attributes:
        yes: Drop more than a tenth of the lake's rows, if need be.
        dry_run: Only print what would be done.
        checksums: Add checksums that a lake of an earlier slidelake lacks, if it is whole.
    """

    lake: LakeArg
    yes: Annotated[bool, typer.Option("--yes")] = False
    dry_run: bool = False
    checksums: bool = False
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "repair")
def repair_command(options: RepairOptions) -> None:
    """Remove damaged parts, or rebuild them from undamaged files; the steps are printed first.

    Only what is on the list is done. Earlier versions stay as they are. With a table damaged
    nothing is done: the versions to go back to are named. Exit code 1 if something is left.
    """
    from commands.lakes.isolated_verify import verify_isolated
    from featurestore.keep import Repaired, plan_repair, repair
    from featurestore.keep.verify.lance_checking import lake_to_mend

    verdict = verify_isolated(options.lake)
    if verdict.broken_tables:
        lines = [damage_line(damage.as_dict()) for damage in verdict.damage]
        untouched = Repaired(left=[*verdict.damage])
        _print_repair(untouched, [*lines, advice(options.lake, verdict)], {}, options.json)
    lake = lake_to_mend(options.lake)
    plan = plan_repair(lake, verdict)
    for line in () if is_quiet() else _plan_lines(plan):
        typer.echo(line, err=True)
    if options.dry_run:
        lines = ["nothing was changed (--dry-run)"] if plan.steps or plan.left else []
        _print_repair(Repaired(left=plan.left), lines, {}, options.json)
    repaired = repair(lake, verdict, plan=plan, yes=options.yes)
    added = _add_checksums(options.lake, verdict) if options.checksums else {}
    _print_repair(repaired, _repaired_lines(repaired, added), added, options.json)


def _add_checksums(lake: str, verdict: "Verdict") -> dict[str, int]:
    """Add the checksums that a whole lake lacks, and return their number by kind."""
    from featurestore import LakeError, open_lake
    from featurestore.keep.verify.file_checks import FILE_CHECKS

    if not verdict.ok:
        msg = f"{lake} was damaged, so no checksums were added: run it again once verify is clean"
        raise LakeError(msg)
    return {check.name: check.add(open_lake(lake)) for check in FILE_CHECKS}


def _plan_lines(plan: "RepairPlan") -> list[str]:
    lines = []
    for step in plan.steps:
        lines += [damage_line(damage.as_dict()) for damage in step.damage]
        lines.append(f"  so: {step.description}")
    return lines + [f"left: {damage_line(damage.as_dict())}" for damage in plan.left]


def _repaired_lines(repaired: "Repaired", added: dict[str, int]) -> list[str]:
    lines = [f"to be ingested again: {slide}" for slide in repaired.slides]
    lines += [
        f"to be extracted again: {teacher} at {mpp} mpp on {counted(len(slides), 'slide')}"
        for teacher, mpp, slides in repaired.columns
    ]
    lines += [f"made again: {name}" for name in repaired.rebuilt]
    lines += [f"left: {damage_line(damage.as_dict())}" for damage in repaired.left]
    lines += [f"{count:,} checksums of {name} added" for name, count in added.items()]
    return lines


def _print_repair(
    repaired: "Repaired", lines: list[str], added: dict[str, int], as_json: bool
) -> NoReturn:
    answer = {
        "slides": repaired.slides,
        "columns": [
            {"teacher": teacher, "mpp": mpp, "slides": slides}
            for teacher, mpp, slides in repaired.columns
        ],
        "rebuilt": repaired.rebuilt,
        "left": [damage.as_dict() for damage in repaired.left],
        "checksums": added,
    }
    print_answer(answer, as_json=as_json, text="\n".join(lines) or "nothing is damaged")
    raise typer.Exit(1 if repaired.left else 0)
