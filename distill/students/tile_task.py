"""The training task of a student of pixels: losses of views of tiles against cached features.

Shape letters: B samples, D embedding.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.recipes.student_settings import TileStudent
from distill.students.heads import Heads, Levels
from distill.students.student import StudentOutputs, TileNetwork, student_card
from distill.students.student_kind import StudentKind, TaskInputs, TrainedStudent
from distill.students.task import (
    SECOND,
    Batch,
    FeaturePrediction,
    SecondStudent,
    TrainingTask,
)
from distill.targets.target import Norms
from distill.targets.target_sources import (
    CLS,
    GRID,
    PATCH,
    Goal,
    MeanUnderSource,
    OwnSource,
    PatchSource,
    TargetSource,
    TeacherColumn,
    UnderSource,
    ViewGeometry,
)
from distill.targets.tile_classes import TileClasses
from distill.terms.mutual_term import peer_predictions
from distill.terms.term import Key, TermContext, TermInputs
from distill.terms.term_table import make_term, term_class
from distill.train.initial_weights import start_from
from distill.train.views import draw, mosaic, normalised, sized
from ingest.teachers.cards import card_json


class TileTask(TrainingTask):
    """Trains a tile student with heads and terms.

    Args:
        recipe: recipe of a `TileStudent`.
        columns: columns of the teachers.
        norms: normalisations of the targets, by column and mpp.
        fine: the mpp of the tiles under a tile, if those are matched.
        initial: file of the tensors from which the network starts, in place of random ones.
        classes: classes of tiles, by the annotation's column that terms name.

    Raises:
        DistillError: a term has no target, a width is above the student's, or two terms train a
            second student.
    """

    def __init__(
        self,
        recipe: Recipe,
        columns: Sequence[TeacherColumn],
        norms: Norms,
        *,
        fine: float | None = None,
        initial: bytes | None = None,
        classes: Mapping[str, TileClasses] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        settings = recipe.student_as(TileStudent)
        self._views, self._input_px = recipe.views, settings.input_px
        self._sizes, self._size_balance = settings.all_sizes, settings.size_balance
        self._ladder = recipe.head == "ladder"
        kinds = [term_class(term.kind) for term in recipe.terms]
        self.network = TileNetwork(
            settings,
            ladder=self._ladder or any(kind.reads_levels for kind in kinds),
            crop_share=_crop_share(recipe),
        )
        if initial is not None:
            # Before the terms, which copy the network for their moving averages.
            start_from(self.network.trunk, initial)
        self._widths = _checked_widths(recipe, self.network.dim)
        raw = {name for term in recipe.terms if term_class(term.kind).raw for name in term.teachers}
        matched = [column for column in columns if column.name not in raw]
        self._sources = _sources(matched, norms, self.network, fine)
        keys = list(self._sources)
        contexts = [
            _term_context(recipe, number, self.network, columns, keys, raw)
            for number in range(len(recipe.terms))
        ]
        terms = [
            make_term(replace(context, classes=classes.get(context.term.labels)))
            for context in contexts
        ]
        self.terms = nn.ModuleList(terms)
        if [term.kind for term in recipe.terms].count("mutual") > 1:
            msg = "several terms 'mutual' given; a run trains one second student"
            raise DistillError(msg)
        self._weights = [term.weight for term in recipe.terms]
        used = [key for key in keys if any(key in term.heads for term in terms)]
        self.heads = Heads(
            recipe.head,
            _widths_in(self.network, ladder=self._ladder),
            {key: self._sources[key].column.dim for key in used},
            width=recipe.head_width,
        )

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the weighted losses [B] by term and teacher."""
        side_px = self._drawn_size(generator)
        x_BCHW = sized(_pixels(batch), side_px)
        seen_BCHW = x_BCHW
        if batch.neighbours:
            others = [sized(_pixels(part), side_px) for part in batch.neighbours]
            seen_BCHW = mosaic([x_BCHW, *others], axes=(2, 3))
        view = draw(
            seen_BCHW,
            self._views,
            generator,
            stride_px=self.network.stride_px,
            mosaics=bool(batch.neighbours),
        )
        outputs: StudentOutputs = self.network(view.pixels)
        goals = self._goals(batch, outputs, view.turns, view.shifts)
        inputs = TermInputs(
            batch=batch,
            outputs=outputs,
            goals=goals,
            predictions=self._predictions(outputs, goals),
            nested=[self._nested_predictions(width, outputs, goals) for width in self._widths],
            generator=generator,
            view=view.pixels,
            another=lambda: self.network(draw(x_BCHW, self._views, generator).pixels),
        )
        losses: dict[str, Tensor] = {}
        for weight, term in zip(self._weights, self.terms, strict=True):
            for name, loss in term(inputs).items():
                losses[name] = losses.get(name, 0) + weight * loss
        return losses

    def after_step(self, step: int) -> None:
        """Update the moving averages and centres of each term."""
        for term in self.terms:
            term.after_step(step, self.network)  # type: ignore[operator]

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, FeaturePrediction]:
        """Predict the features of each column.

        Tiles under a tile have the name "COLUMN under", a second student's "COLUMN peer".
        """
        outputs = self.network(normalised(sized(_pixels(batch), self._input_px)))
        goals = self._goals(batch, outputs, torch.zeros(len(batch.tile_id), dtype=torch.int64))
        predictions = self._predictions(outputs, goals)
        embedding_columns = [column for column, output in predictions if output == CLS]
        named = {
            f"{key[0]} under"
            if key[1] != CLS and key[0] in embedding_columns
            else key[0]: self._sources[key].prediction(predicted.float(), goals[key], batch)
            for key, predicted in predictions.items()
        }
        if (second := self.second_student) is not None:
            x_BCHW = normalised(sized(_pixels(batch), self._input_px))
            keys = list(second.heads.targets)  # type: ignore[arg-type]
            predicted_by_key = peer_predictions(second.heads, second.network(x_BCHW), keys)
            named |= {
                f"{key[0]}{SECOND}": self._sources[key].prediction(x.float(), goals[key], batch)
                for key, x in predicted_by_key.items()
            }
        return named

    @property
    def second_student(self) -> SecondStudent | None:
        """Return the second student of mutual distillation, if the recipe trains one."""
        students = [term.second_student for term in self.terms]
        return next((one for one in students if one is not None), None)  # type: ignore[return-value]

    def _goals(
        self,
        batch: Batch,
        outputs: StudentOutputs,
        turns_B: Tensor,
        shifts_B2: Tensor | None = None,
    ) -> dict[Key, Goal]:
        """Return the goals of the student's views."""
        grid = (outputs.tokens.shape[1], outputs.tokens.shape[2])
        geometry = ViewGeometry(turns=turns_B, shifts=shifts_B2, grid=grid)
        return {key: source.goal(batch, geometry) for key, source in self._sources.items()}

    def _drawn_size(self, generator: torch.Generator) -> int:
        """Return the side of a step's input, in pixels."""
        if len(self._sizes) == 1:
            return self._input_px
        weights = torch.ones(len(self._sizes))
        if self._size_balance == "tokens":
            weights = 1 / torch.tensor(self._sizes).float().square()
        return self._sizes[int(torch.multinomial(weights, 1, generator=generator))]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return all sides of the input in pixels, if there are several."""
        return self._sizes if len(self._sizes) > 1 else ()

    @contextlib.contextmanager
    def at_size(self, side_px: int) -> Iterator[None]:
        """Run `predict` on inputs of another side in pixels."""
        usual_px, self._input_px = self._input_px, side_px
        try:
            yield
        finally:
            self._input_px = usual_px

    def source(self, column: str, output: str) -> TargetSource:
        """Return the target source of a column for an output of the student."""
        return self._sources[column, output]

    @property
    def student(self) -> nn.Module:
        """Return the trunk of the network."""
        return self.network.trunk

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """Return the network; a step calls no trunk, but the two halves of its forward."""
        return [self.network]

    @property
    def kept_parts(self) -> dict[str, nn.Module]:
        """Return the student and its heads."""
        return {**super().kept_parts, "heads": self.heads}

    @property
    def dim(self) -> int:
        """Return the width of the embedding."""
        dim: int = self.network.dim
        return dim

    def _predictions(self, outputs: StudentOutputs, goals: dict[Key, Goal]) -> dict[Key, Tensor]:
        """Predict the targets from the whole embedding and from the tokens."""
        inputs: dict[Key, Levels] = {
            key: source.student(outputs, goals[key]) for key, source in self._sources.items()
        }
        if self._ladder:
            inputs |= {key: outputs.levels for key in inputs if key[1] == CLS}
        return self.heads(inputs)  # type: ignore[no-any-return]

    def _nested_predictions(
        self, width: int, outputs: StudentOutputs, goals: dict[Key, Goal]
    ) -> dict[Key, Tensor]:
        """Predict the targets from the embedding's first `width` channels; the others are 0."""
        first_BD = torch.zeros_like(outputs.embedding)
        first_BD[:, :width] = outputs.embedding[:, :width]
        keys = [key for key in self._sources if key[1] == CLS]
        return self.heads(dict.fromkeys(keys, first_BD))  # type: ignore[no-any-return]


def _pixels(batch: Batch) -> Tensor:
    if batch.pixels is None:
        msg = "a student of pixels needs them: make the stream with pixels='uint8'"
        raise DistillError(msg)
    return batch.pixels


def _crop_share(recipe: Recipe) -> float | None:
    """Return the side of the crops that a term shows the student, as a share of a tile's."""
    shares = {term_class(term.kind).crop_share(term) for term in recipe.terms} - {None}
    if len(shares) > 1:
        msg = (
            f"terms show the student crops of {' and '.join(sorted(map(str, shares)))} of a "
            "tile's side; give one share"
        )
        raise DistillError(msg)
    return next(iter(shares), None)


def _checked_widths(recipe: Recipe, dim: int) -> tuple[int, ...]:
    wrong = [width for width in recipe.widths if not 0 < width < dim]
    if wrong or (recipe.widths and recipe.head == "ladder"):
        msg = (
            f"widths {list(recipe.widths)} given for a student of {dim} channels and head "
            f"'{recipe.head}'; each is at least 1 and below {dim}, and not with a ladder"
        )
        raise DistillError(msg)
    return recipe.widths


def _sources(
    columns: Sequence[TeacherColumn], norms: Norms, student: TileNetwork, fine: float | None
) -> dict[Key, TargetSource]:
    sources: list[TargetSource] = []
    for column in columns:
        if fine is not None:
            sources.append(MeanUnderSource(column, norms, fine=fine))
            sources.append(UnderSource(column, norms, fine=fine))
        elif column.tokens is None:
            sources.append(OwnSource(column, norms))
        else:
            sources.append(PatchSource(column, norms, grid=student.grid))
    return {(source.column.name, source.output): source for source in sources}


def _term_context(
    recipe: Recipe,
    number: int,
    student: TileNetwork,
    columns: Sequence[TeacherColumn],
    keys: Sequence[Key],
    raw: set[str],
) -> TermContext:
    """Return the inputs of a term: its teachers' columns, or all columns that no term reads raw.

    Raises:
        DistillError: the term names a teacher that the recipe does not have, or reads raw columns
            and names no teacher.
    """
    term = recipe.terms[number]
    unknown = sorted(set(term.teachers) - set(recipe.teachers))
    names_column = term_class(term.kind).raw or term_class(term.kind).apart
    if unknown or (names_column and not term.teachers):
        msg = (
            f"term '{term.kind}' of {', '.join(term.teachers) or 'no teacher'}: name "
            f"{'its column' if names_column else 'some'} of {', '.join(recipe.teachers)}"
        )
        raise DistillError(msg)
    apart = {n for t in recipe.terms if term_class(t.kind).apart for n in t.teachers}
    names = term.teachers or tuple(n for n in recipe.teachers if n not in raw | apart)
    term_columns = [column for column in columns if column.name in names]
    return TermContext(
        recipe=recipe,
        term=term,
        student=student,
        columns=term_columns,
        keys=[key for key in keys if key[0] in names],
    )


def _widths_in(student: TileNetwork, *, ladder: bool) -> dict[str, int | Sequence[int]]:
    """Return the number of channels of each of the student's outputs."""
    cls: int | Sequence[int] = student.level_dims if ladder else student.dim
    return {CLS: cls, PATCH: student.token_dim, GRID: student.token_dim}


def _tile_task(inputs: TaskInputs) -> TileTask:
    """Build a student of pixels with its heads and terms."""
    fine = inputs.under[-1] if inputs.under else None
    return TileTask(
        inputs.recipe,
        inputs.columns,
        inputs.norms,
        fine=fine,
        initial=inputs.initial,
        classes=inputs.classes,
    )


def _card_file(student: TrainedStudent) -> dict[str, bytes]:
    """Return the card by which `extract` runs the student as a teacher."""
    card = student_card(
        student.recipe,
        student.name,
        student.task.dim,
        student.licences,
        student.mpps,
        initial=student.initial,
    )
    return {"card.json": card_json(card)}


def _term_settings(kind: str) -> Mapping[str, float]:
    """Return the settings of a term, with their defaults."""
    return term_class(kind).allowed


TILE = StudentKind(task=_tile_task, keep=_card_file, term_settings=_term_settings)
