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
from ingest.teachers.outputs import Output, filled_output
from ingest.teachers.views.chosen_views import ChosenViews, choose_views
from ingest.teachers.views.field_of_view import FieldOfView, FovMode
from ingest.teachers.views.missing_tiles import ORIGIN
from ingest.teachers.weights.weights_files import has_onnx
from ingest.teachers.work.units import Choice, Row, Unit

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
    chosen: ChosenViews | None = None,
) -> list[Unit]:
    """Return the fragments that lack features of these teachers, largest first.

    The teachers' columns are made, empty, where they do not exist yet, and beside a column whose
    field of view is several tiles one for the shares of it that are filled.

    Args:
        lake: lake to be filled.
        teachers: the encoders with the columns to fill.
        mpps: the levels of the lake to fill them at.
        choice: the tiles to run on.
        precision: precision of new columns; None for the cards' own precision on GPUs.
        engine: engine of new columns; None for the faster engine.
        device: device of the workers.
        chosen: the columns' fields of view; None as `choose_views` does by itself.

    Raises:
        FieldError: an mpp does not have the field of view of a teacher.
        IdentityError: a column of that name holds another encoder's features.
    """
    lake.committer.recover()
    chosen = chosen or choose_views(lake, teachers, mpps)
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
            for output, view in _seen_outputs(teacher, chosen, mpp):
                name = output.column
                kept = identity_of(schema.field(name)) if name in schema.names else {}
                identity = teacher.identity(
                    output,
                    precision or kept.get("precision") or usual,
                    engine or (kept.get("engine", "torch") if kept else faster),
                    view,
                )
                whole = identity | choice.identity()
                new_fields.append(teacher_field(name, output.dim, whole, teacher.card.terms))
        if not new_fields:
            continue
        fields = {field.name: field for field in lake.committer.add_teachers(mpp, new_fields)}
        units += _units(lake.refreshed(), mpp, fields, choice)
    return sorted(units, key=lambda unit: -unit.tiles)


def _seen_outputs(
    teacher: Teacher, chosen: ChosenViews, mpp: float
) -> Iterator[tuple[Output, FieldOfView]]:
    """Yield the columns of a teacher at an mpp with their fields of view, and those of shares."""
    for output in teacher.outputs:
        view = chosen.views.get((output.column, mpp))
        if view is None:
            continue
        yield output, view
        if view.ratio > 1:
            yield filled_output(output), view


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
    fov: FovMode | None = None,
) -> None:
    """Check that the columns which a lake has are of these teachers, before they are extended.

    Raises:
        FieldError: no mpp of the lake has the field of view of a teacher.
        IdentityError: a column of that name holds another encoder's features.
    """
    chosen = choose_views(lake, teachers, lake.config.mpps, fov, skip=True)
    for mpp in lake.config.mpps:
        schema = open_table(lake.store, features_table(mpp)).schema
        for teacher in teachers:
            for output in teacher.outputs:
                name = output.column
                if name in schema.names and (name, mpp) in chosen.views:
                    kept = identity_of(schema.field(name))
                    identity = teacher.identity(
                        output,
                        precision or kept.get("precision") or "float32",
                        engine or kept.get("engine", "torch"),
                        chosen.views[name, mpp],
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
    views = [
        FieldOfView.of_identity(identity_of(column), tile_px=lake.config.tile_px, mpp=mpp)
        for column in fields.values()
    ]
    finer = _finer_rows(lake, sorted({view.mpp for view in views if view.ratio > 1}))
    # Features that were imported have no pixels to run a teacher on.
    with_pixels = lake.tiles_of(mpp=mpp).drop_nulls("shard").sort("row_start")
    for row in with_pixels.iter_rows(named=True):
        if where is not None:
            row["where"] = where.of(row["slide_id"], patients.get(row["slide_id"]))
        if finer:
            row |= finer[row["slide"]]
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
                tile_px=lake.config.tile_px,
                choice=choice,
            )


def _finer_rows(lake: Lake, mpps: Sequence[float]) -> dict[int, Row]:
    """Return by slide what regions of finer tiles are put together from.

    Args:
        lake: the lake.
        mpps: the finer mpps; none where no region is.

    Returns:
        `finer`, the slide's catalog rows by mpp, and `origin`, its file and how that was read.
    """
    if not mpps:
        return {}
    columns = [name for name in ORIGIN if name in lake.slides().collect_schema().names()]
    origins = lake.slides().select("slide", *columns).collect().to_dicts()
    rows: dict[int, Row] = {
        origin["slide"]: {"finer": {}, "origin": dict.fromkeys(ORIGIN) | origin}
        for origin in origins
    }
    for mpp in mpps:
        for row in lake.tiles_of(mpp=mpp).iter_rows(named=True):
            if row["slide"] in rows:
                rows[row["slide"]]["finer"][mpp] = row
    return rows
