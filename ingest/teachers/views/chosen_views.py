"""The fields of view of an extract's columns: which each column has at each mpp, and where not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featurestore import Lake, mpp_name
from featurestore.tables import features_table, identity_of, open_table
from ingest.errors import FieldError
from ingest.teachers.find_teacher import Teacher
from ingest.teachers.views.field_of_view import FieldOfView, FovMode, field_of_view


@dataclass(frozen=True, kw_only=True)
class ChosenViews:
    """The fields of view of columns.

    Attributes:
        views: by name of the column and mpp; a column is made where it has one.
        notes: a line on each teacher and mpp whose field of view is not the row's tile, or that
            are left out.
    """

    views: Mapping[tuple[str, float], FieldOfView]
    notes: tuple[str, ...] = ()


def choose_views(
    lake: Lake,
    teachers: Sequence[Teacher],
    mpps: Sequence[float],
    mode: FovMode | None = None,
    *,
    skip: bool = False,
) -> ChosenViews:
    """Return the fields of view of teachers' columns at some mpps.

    A column that is there goes on with the field of view that it was begun with, unless a mode is
    given that needs another.

    Args:
        lake: the lake.
        teachers: encoders of the columns.
        mpps: mpps of the rows.
        mode: what a user allows; see `field_of_view`.
        skip: whether a teacher is left out at the mpps that do not have its field, if one does.

    Raises:
        FieldError: an mpp does not have the field of a teacher; with `skip`, none does.
    """
    views: dict[tuple[str, float], FieldOfView] = {}
    notes: list[str] = []
    for teacher in teachers:
        errors: list[FieldError] = []
        chosen: dict[float, FieldOfView] = {}
        for mpp in mpps:
            try:
                of_mpp = dict(_views_at(lake, teacher, mpp, mode))
            except FieldError as error:
                errors.append(error)
                continue
            views |= {(column, mpp): view for column, view in of_mpp.items()}
            chosen[mpp] = next(iter(of_mpp.values()))
        if errors and not (skip and chosen):
            raise errors[0]
        notes += [f"not run: {error}" for error in errors]
        notes += [line for at in chosen.items() if (line := _note(lake, teacher, *at))]
    return ChosenViews(views=views, notes=tuple(notes))


def _note(lake: Lake, teacher: Teacher, mpp: float, view: FieldOfView) -> str | None:
    """Return a line on a field of view that is not the one which goes without saying."""
    name = f"{teacher.card.name} at mpp {mpp_name(mpp)}"
    if view.identity():
        return f"{name} sees {view}"
    try:
        expected = field_of_view(teacher.card, lake.config, mpp)
    except FieldError as error:
        return f"{name} goes on with the tiles that its column was begun with, though {error}"
    if view.sees_as(expected):
        return None
    return f"{name} goes on with {view}, as its column was begun; a new one would see {expected}"


def _views_at(
    lake: Lake, teacher: Teacher, mpp: float, mode: FovMode | None
) -> Iterator[tuple[str, FieldOfView]]:
    """Yield the columns of a teacher at an mpp, each with its field of view.

    Raises:
        FieldError: there is no such field.
    """
    schema = open_table(lake.store, features_table(mpp)).schema
    for output in teacher.outputs:
        name = output.column
        begun = None
        if name in schema.names:
            kept = identity_of(schema.field(name))
            begun = FieldOfView.of_identity(kept, tile_px=lake.config.tile_px, mpp=mpp)
        if begun is not None and mode is None:
            yield name, begun
            continue
        view = field_of_view(teacher.card, lake.config, mpp, mode)
        yield name, begun if begun is not None and begun.sees_as(view) else view
