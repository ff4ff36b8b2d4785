"""`slidelake restore`: a new version that equals an earlier one."""

from dataclasses import asdict, dataclass

import typer

from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """Options of `slidelake restore`.

    Attributes:
        at: Number or snapshot of the version to go back to.
    """

    lake: LakeArg
    at: str
    json: JsonOpt = False


@command(app, "restore")
def restore_command(options: RestoreOptions) -> None:
    """Create a new version that equals an earlier, undamaged version. Nothing is deleted.

    For a lake whose newest version is damaged, or to undo later changes. `slidelake verify` names
    versions that are whole. Refused while a job is writing.

    Example: slidelake restore my-lake --at 41
    """
    from featurestore import restore

    restored = restore(options.lake, options.at)
    lines = [
        f"version {restored.version} of {options.lake} is equal to version {restored.equal_to}"
    ]
    lines += [
        f"{table}: versions {', '.join(str(number) for number in numbers)} were lost"
        for table, numbers in restored.lost.items()
    ]
    lines += [f"a damaged manifest lies in {path} now" for path in restored.set_aside]
    lines += [f"made again: the index of {table}" for table in restored.rebuilt]
    print_answer(asdict(restored), as_json=options.json, text="\n".join(lines))
