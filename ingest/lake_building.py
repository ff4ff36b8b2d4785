"""Slides to tiles and tiles to columns in one go: an ingest and an extract that share one Ray.

What can be wrong with the teachers (a name, missing weights, a column of another encoder, a
condition on tiles) is looked at first, since cutting slides takes hours.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack, cast

from cluster import (
    WorkerSettings,
    joins_cluster,
    machine_shapes,
    node_shapes,
    place,
    progress_of_stages,
    ray_session,
    shared_ray_session,
)
from featurestore import LakeConfig, Shown, Store, create_lake, open_lake
from ingest.errors import InputError
from ingest.pages.contact_sheet import write_contact_sheet
from ingest.ray_ingest import SLIDE_TIMEOUT_S, IngestResult, ingest
from ingest.select.named_slides import IngestOptions
from ingest.select.new_lake_settings import settings
from ingest.teachers.cards.card import Engine, Precision
from ingest.teachers.cards.card_table import CARDS
from ingest.teachers.column_maker import ColumnMaker
from ingest.teachers.extract_plan import check_columns, choose_tiles
from ingest.teachers.find_teacher import Teacher, find_card, find_teachers, sees_features
from ingest.teachers.outputs import outputs_of
from ingest.teachers.own_encoder import split_own
from ingest.teachers.ray_extract import ExtractResult, extract
from ingest.teachers.views.field_of_view import FovMode
from ingest.teachers.weights.weights_files import has_weights

FEATURE_BYTES = 2  # float16


class BuildOptions(IngestOptions, total=False):
    """Options of a build: those of an ingest, and how teachers are run.

    Attributes:
        weights: folder in which weights are looked for first, on each machine.
        precision: precision of new columns; None for float32 on CPUs, the card's own on GPUs.
        engine: engine of new columns; None for the faster engine.
        where: a predicate on the tiles' columns; tiles for which it does not hold get NaN.
        share: share of the tiles, drawn by their keys; the others get NaN.
        fov: field of view of new columns, as in `extract`.
        slide_timeout_s: seconds, plus one for each MB, after which a slide is given up.
        commit_slides: number of slides in one commit of the ingest; None as in `ingest`.
        address: a Ray cluster; a local Ray is started if None.
        workers: device and size of the workers that run teachers; chosen to fit if left out.
        auto_vacuum: whether old versions are freed in the end; see `free_old_versions`.
    """

    weights: str | None
    precision: Precision | None
    engine: Engine | None
    where: str | None
    share: float | None
    fov: FovMode | None
    slide_timeout_s: float
    commit_slides: int | None
    address: str | None
    workers: WorkerSettings
    auto_vacuum: bool


@dataclass(frozen=True, kw_only=True, repr=False)
class BuildResult(Shown):
    """The outcome of a build.

    Attributes:
        ingested: outcome of the ingest.
        extracted: outcome of the extract.
        page: path of the page that shows every slide, and the columns of the lake.
        seconds: seconds that the whole run took.

    Examples:
        >>> built = sl.build_lake("my-lake", sl.sample_slide(), ["efficientnet_lite0"])
        >>> built.ingested.ready, built.failed
        (1, [])
    """

    ingested: IngestResult
    extracted: ExtractResult
    page: str
    seconds: float

    @property
    def failed(self) -> list[dict[str, str]]:
        """Return the failed slides of both stages, with their reasons.

        Examples:
            >>> sl.build_lake("my-lake", [sl.sample_slide()], ["efficientnet_lite0"]).failed
            []
        """
        return [*self.ingested.failed, *self.extracted.failed]


# Long by its docstring and by the names of the options that it passes on.
def build_lake(
    lake_uri: str,
    slides: str | Sequence[str],
    teachers: str | Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    config: LakeConfig | None = None,
    column_makers: Sequence[ColumnMaker] = (),
    **options: Unpack[BuildOptions],
) -> BuildResult:
    """Cut slides into a lake, and run teachers on every tile of the lake that lacks features.

    Args:
        lake_uri: folder or URL of the lake; it is made if it is new.
        slides: files, folders, globs, manifests, URLs; slides in the lake are left alone.
        teachers: names as in `extract`.
        mpps: microns per pixel of the tiles of a new lake; 0.5 if None.
        config: all settings of a new lake, in place of `mpps`; None for the lake's own.
        column_makers: makers of columns from other columns, as in `extract`.
        **options: see `BuildOptions`.

    Raises:
        InputError: the inputs name no slide; or both `mpps` and `config` were given.
        LakeError: the lake exists with other settings, or `where` is no predicate on its tiles.
        TeacherError: a teacher is not known or its weights are missing; no slide was cut.
        IdentityError: a column of that name holds another encoder's features; no slide was cut.
        ClusterError: no node of the cluster holds such a worker; no slide was cut.
    """
    start = time.perf_counter()
    teachers = [teachers] if isinstance(teachers, str) else teachers
    cut = _ingest_options(options)
    lake_config = _lake_config(lake_uri, slides, mpps, config, cut)
    check_teachers(lake_uri, teachers, lake_config, column_makers=column_makers, **options)
    address = options.get("address")
    with shared_ray_session(), progress_of_stages("build", "ingest", "extract"):
        _check_workers(options.get("workers", WorkerSettings()), address)
        ingested = ingest(
            lake_uri,
            slides,
            lake_config,
            slide_timeout_s=options.get("slide_timeout_s", SLIDE_TIMEOUT_S),
            commit_slides=options.get("commit_slides"),
            address=address,
            **cut,
        )
        extracted = extract(
            lake_uri,
            teachers,
            weights=options.get("weights"),
            precision=options.get("precision"),
            engine=options.get("engine"),
            where=options.get("where"),
            share=options.get("share"),
            fov=options.get("fov"),
            address=address,
            workers=options.get("workers", WorkerSettings()),
            auto_vacuum=options.get("auto_vacuum", False),
            column_makers=column_makers,
        )
    # The page of the ingest is there while teachers run; at the end it has their columns, too.
    made = any(counts["tiles"] for counts in extracted.teachers.values())
    page = write_contact_sheet(open_lake(lake_uri)) if made else ingested.sheet
    seconds = round(time.perf_counter() - start, 3)
    return BuildResult(ingested=ingested, extracted=extracted, page=page, seconds=seconds)


def _check_workers(workers: WorkerSettings, address: str | None) -> None:
    """Refuse workers that fit on no node, before hours of cutting.

    Raises:
        ClusterError: no node holds such a worker.
    """
    if joins_cluster(address):
        with ray_session(address=address):  # `shared_ray_session` keeps it up
            place(workers, node_shapes(), most=1)
    else:
        place(workers, machine_shapes(), most=1)


def check_teachers(
    lake_uri: str,
    teachers: Sequence[str],
    config: LakeConfig,
    *,
    column_makers: Sequence[ColumnMaker] = (),
    **options: Unpack[BuildOptions],
) -> None:
    """Check all that an extract after an ingest would refuse; missing weights are fetched.

    Raises:
        LakeError: `where` is no predicate on the tiles' columns, or `share` is not in (0, 1].
        TeacherError: a teacher is not known or its weights are missing.
        IdentityError: a column of that name holds another encoder's features.
    """
    store = Store(lake_uri)
    encoders = [
        name for name in teachers if not any(maker.makes(store, name) for maker in column_makers)
    ]
    networks = find_teachers(store, encoders, folder=options.get("weights"))
    if store.exists("lake.json"):
        _check_columns(lake_uri, config, networks, options)
    else:  # tables like those that the lake will have
        with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
            _check_columns(folder, config, networks, options)


@dataclass(frozen=True, kw_only=True)
class PlannedColumn:
    """A column that a build would make.

    Attributes:
        name: name of the column.
        dim: numbers of a tile.
        note: remark on weights that are not here; empty if they are.
    """

    name: str
    dim: int
    note: str = ""

    def bytes_of(self, tiles: int) -> int:
        """Return the bytes of the features of some tiles.

        >>> PlannedColumn(name="uni2_h", dim=1536).bytes_of(1000)
        3072000
        """
        return FEATURE_BYTES * self.dim * tiles


def plan_columns(
    lake_uri: str, teachers: Sequence[str], *, folder: str | None = None
) -> list[PlannedColumn]:
    """Return the columns that encoders would make, without fetching weights or writing anything.

    Students of features and users' own encoders are left out: their columns are known once they
    are run.

    Raises:
        TeacherError: a name is not known or has no such column.
    """
    store, columns = Store(lake_uri), list[PlannedColumn]()
    for name in teachers:
        if split_own(name) or sees_features(store, name):
            continue
        card = find_card(store, name)
        note = ""
        if card.name in CARDS and not has_weights(card, folder):
            note = (
                f"{card.name}: its weights are not on this machine (--weights DIR names a folder)"
            )
        columns += [
            PlannedColumn(name=output.column, dim=output.dim, note=note)
            for output in outputs_of(name, card)
        ]
    return columns


def _check_columns(
    lake_uri: str, config: LakeConfig, networks: Sequence[Teacher], options: BuildOptions
) -> None:
    lake = create_lake(lake_uri, config)
    choice = choose_tiles(lake, lake.config.mpps, options.get("where"), options.get("share"))
    check_columns(
        lake,
        networks,
        choice=choice,
        precision=options.get("precision"),
        engine=options.get("engine"),
        fov=options.get("fov"),
    )


def _ingest_options(options: BuildOptions) -> IngestOptions:
    every_option = cast("Mapping[str, object]", options)
    names = IngestOptions.__annotations__
    return cast("IngestOptions", {name: every_option[name] for name in names if name in options})


def _lake_config(
    lake_uri: str,
    slides: Sequence[str],
    mpps: Sequence[float] | None,
    config: LakeConfig | None,
    cut: IngestOptions,
) -> LakeConfig:
    if config is None:
        return settings(lake_uri, slides, cut, mpps=mpps)
    if mpps is not None:
        msg = f"mpps={list(mpps)} and a config were given; give one of them"
        raise InputError(msg)
    return config
