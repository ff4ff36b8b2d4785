"""`slidelake info`: the contents of a lake."""

from dataclasses import asdict, dataclass
from typing import Any

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `slidelake info`."""

    lake: LakeArg
    at: AtOpt = None
    json: JsonOpt = False


@command(app, "info", without_pandas=True)
def info_command(options: InfoOptions) -> None:
    """Print the contents of a lake: slides, tiles, teachers, version, snapshots."""
    from featurestore import open_lake
    from featurestore.keep.lance_upkeep import upkeep

    lake = open_lake(options.lake, version=options.at)
    info, pending_upkeep = lake.info(), upkeep(lake)
    info["upkeep"] = {**asdict(pending_upkeep), "advice": pending_upkeep.advice()}
    lines = [*_info_lines(info), *pending_upkeep.advice()]
    print_answer(info, as_json=options.json, text="\n".join(lines))


def _info_lines(info: dict[str, Any]) -> list[str]:
    lines = [f"{info['lake']}: format {info['format']}, version {info['version']}"]
    lines.append(
        ", ".join(f"{counted(count, 'slide')} {state}" for state, count in info["slides"].items())
    )
    lines += [f"{counted(count, 'tile')} at {mpp} mpp" for mpp, count in info["tiles"].items()]
    lines += [
        f"{column['teacher']} at {column['mpp']} mpp: {column['tiles']:,} x {column['dim']}"
        + "".join(f", {name} {column[name]}" for name in ("where", "share") if name in column)
        + (f", field {fov['px']} px at {fov['mpp']} mpp" if (fov := column.get("fov")) else "")
        + ("" if column["complete"] else " (incomplete: run extract again)")
        for column in info["features"]
    ]
    lines += [_annotation_line(annotation) for annotation in info["annotations"]]
    lines += [
        f"slide features {one['name']} at {one['mpp']} mpp: {counted(one['rows'], one['unit'])}, "
        f"{one['dim']} numbers each"
        for one in info["slide_features"]
    ]
    lines += [
        f"column {column['column']} at {column['mpp']} mpp: {column['type']}, of no teacher and no "
        "annotation"
        for column in info["other_columns"]
    ]
    return lines + [
        f"snapshot {name}: version {version}" for name, version in info["snapshots"].items()
    ]


def _annotation_line(annotation: dict[str, Any]) -> str:
    columns = ", ".join(f"{name} ({kind})" for name, kind in annotation["columns"].items())
    place = (
        " at " + ", ".join(f"{mpp} mpp" for mpp in annotation["mpps"]) if annotation["mpps"] else ""
    )
    source = f", from {annotation['source']}" if annotation["source"] else ""
    heading = f"annotation {annotation['name']} of {annotation['level']}s{place}"
    return f"{heading}: {counted(annotation['rows'], 'row')}, {columns}{source}"
