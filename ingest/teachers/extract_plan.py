"""The plan of an extract: the tiles to run on, and the fragments that lack a teacher's column."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import pyarrow as pa

from cluster import NodeShape, WorkerSettings
from featurestore import Lake, LakeError
from featurestore.annotations import Where, slides_of
from featurestore.tables import (
    TILE_COLUMNS,
    features_table,
    identity_of,
    open_table,
    teacher_field,
)
from ingest.teachers.cards.card import Engine, Precision
from ingest.teachers.find_teacher import Teacher
from ingest.teachers.weights.weights_files import has_onnx
from ingest.teachers.work.units import Choice, Unit

#: An export to ONNX takes 10-20 s, which fewer tiles do not win back.
ONNX_TILES = 5000
#: Threads of one worker on CPUs: more of them wait for each other, fewer copy the networks.
MOST_THREADS = 8
#: Share of the cluster's CPUs that workers of one size have to be able to take.
USED_SHARE = 0.9


def choose_tiles(
    lake: Lake, mpps: Sequence[float], where: str | None, share: float | None
) -> Choice:
    """Return the choice of tiles by a predicate and a share.

    Raises:
        LakeError: the predicate is not valid on the tiles' columns, or the share is not in (0, 1].
    """
    if share is not None and not 0 < share <= 1:
        msg = f"share {share} given; it is more than 0, and 1 at most"
        raise LakeError(msg)
    if where is None:
        return Choice(share=share)
    predicate = Where(lake, where)
    sample = next(slides_of(lake), ("", None))
    for mpp in mpps:
        table = open_table(lake.store, features_table(mpp))
        try:
            table.scanner(columns=["tile_id"], filter=predicate.of(*sample), limit=1).to_table()
        except (ValueError, OSError) as error:
            reason = str(error).partition("\n")[0]
            names = ", ".join((*TILE_COLUMNS, *lake.annotations()))
            msg = f"--where {where!r} can't be asked of tiles ({names}): {reason}"
            raise LakeError(msg) from error
    return Choice(where=where, share=share, marks=predicate.marks)


def plan(
    lake: Lake,
    teachers: Sequence[Teacher],
    mpps: Sequence[float],
    *,
    choice: Choice = Choice(),  # noqa: B008 - it is frozen
    precision: Precision | None = None,
    engine: Engine | None = None,
    device: Literal["cuda", "cpu"] = "cpu",
) -> list[Unit]:
    """Return the fragments that lack features of these teachers, largest first.

    The teachers' columns are made, empty, where they do not exist yet.

    Args:
        lake: lake to be filled.
        teachers: the encoders with the columns to fill.
        mpps: the levels of the lake to fill them at.
        choice: the tiles to run on.
        precision: precision of new columns; None for the cards' own precision on GPUs.
        engine: engine of new columns; None for the faster engine.
        device: device of the workers.

    Raises:
        IdentityError: a column of that name holds another encoder's features.
    """
    lake.committer.recover()
    units: list[Unit] = []
    tiles = sum(int(lake.tiles_of(mpp=mpp)["tiles"].sum()) for mpp in mpps)
    for mpp in mpps:
        schema = open_table(lake.store, features_table(mpp)).schema
        new_fields: list[pa.Field] = []
        for teacher in teachers:
            usual: Precision = teacher.card.precision if device == "cuda" else "float32"
            faster = (
                _faster_engine(teacher, tiles)
                if device == "cpu" and precision in (None, usual)
                else "torch"
            )
            for output in teacher.outputs:
                name = output.column
                kept = identity_of(schema.field(name)) if name in schema.names else {}
                identity = teacher.identity(
                    output,
                    precision or kept.get("precision") or usual,
                    engine or (kept.get("engine", "torch") if kept else faster),
                )
                new_fields.append(
                    teacher_field(
                        name, output.dim, identity | choice.identity(), teacher.card.terms
                    )
                )
        fields = {field.name: field for field in lake.committer.add_teachers(mpp, new_fields)}
        units += _units(lake.refreshed(), mpp, fields, choice)
    return sorted(units, key=lambda unit: -unit.tiles)


def sized_for(
    settings: WorkerSettings,
    shapes: Sequence[NodeShape],
    device: Literal["cuda", "cpu"],
    *,
    most: int,
) -> WorkerSettings:
    """Return settings with a size of workers on CPUs, if the user has left workers and size open.

    Workers get as many CPUs as possible, so that the networks are in memory few times, but at most
    `MOST_THREADS`, and so that nearly all CPUs of uneven nodes are used. The size is open as well
    if more workers are wanted than the work has use for: one that fits on the largest node alone
    would wait for it if that node was lost.

    >>> nodes = [NodeShape(cpus=16, gpus=0, count=2), NodeShape(cpus=4, gpus=0, count=1)]
    >>> sized_for(WorkerSettings(), nodes, "cpu", most=9).cpus_per_worker
    4.0
    >>> sized_for(WorkerSettings(workers=2), nodes, "cpu", most=1).cpus_per_worker
    4.0
    """
    wanted = settings.workers
    is_open = settings.cpus_per_worker is None and (wanted is None or wanted > most)
    if device == "cuda" or not is_open or not shapes:
        return settings
    whole = sum(shape.count * shape.cpus for shape in shapes)
    used = {
        cpus: sum(shape.count * (shape.cpus // cpus) * cpus for shape in shapes) / whole
        for cpus in range(1, MOST_THREADS + 1)
    }
    best = max(used.values())
    if not best:
        return settings
    least = min(USED_SHARE, best)
    cpus = max(cpus for cpus, share in used.items() if share >= least)
    return replace(settings, cpus_per_worker=float(cpus))


def check_columns(
    lake: Lake,
    teachers: Sequence[Teacher],
    *,
    choice: Choice,
    precision: Precision | None = None,
    engine: Engine | None = None,
) -> None:
    """Check that the columns which a lake has are of these teachers, before they are extended.

    Raises:
        IdentityError: a column of that name holds another encoder's features.
    """
    for mpp in lake.config.mpps:
        schema = open_table(lake.store, features_table(mpp)).schema
        for teacher in teachers:
            for output in teacher.outputs:
                name = output.column
                if name in schema.names:
                    kept = identity_of(schema.field(name))
                    identity = teacher.identity(
                        output,
                        precision or kept.get("precision") or "float32",
                        engine or kept.get("engine", "torch"),
                    )
                    identity |= choice.identity()
                    # of a column that is there it compares the identity, and changes nothing
                    lake.committer.add_teacher(mpp, name, output.dim, identity)


def _faster_engine(teacher: Teacher, tiles: int) -> Engine:
    """Return the faster engine on a CPU; for transformers neither is clearly faster (measured)."""
    convolutional = teacher.card.grid is None or teacher.card.maps
    pooled = {output.pooling for output in teacher.outputs} <= set(teacher.card.poolings)
    faster = convolutional and pooled and teacher.source is None and tiles >= ONNX_TILES
    return "onnxruntime" if faster and has_onnx() else "torch"


def _units(lake: Lake, mpp: float, fields: dict[str, pa.Field], choice: Choice) -> Iterator[Unit]:
    table = open_table(lake.store, features_table(mpp))
    done = {name: set(lake.features_of(name, mpp=mpp)["slide"]) for name in fields}
    slides = defaultdict(list)
    where = None if choice.where is None else Where(lake, choice.where)
    patients = dict(slides_of(lake)) if where is not None and where.marks else {}
    # Features that were imported have no pixels to run a teacher on.
    with_pixels = lake.tiles_of(mpp=mpp).drop_nulls("shard").sort("row_start")
    for row in with_pixels.iter_rows(named=True):
        if where is not None:
            row["where"] = where.of(row["slide_id"], patients.get(row["slide_id"]))
        slides[row["fragment"]].append(row)
    for fragment in table.get_fragments():
        rows = slides.get(fragment.fragment_id, [])
        missing = [
            field
            for name, field in fields.items()
            if any(row["slide"] not in done[name] for row in rows)
        ]
        if missing:
            yield Unit(
                mpp=mpp,
                fragment=fragment.fragment_id,
                fields=tuple(missing),
                slides=tuple(rows),
                rows=fragment.physical_rows,
                choice=choice,
            )
