"""The embeddings that are compared: students, teachers, a PCA of teachers, an untrained network.

Shape letters: N tiles, D embedding.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from distill.errors import DistillError
from distill.evaluate.sampled_tiles import SampledTiles
from featurestore import Lake, LakeError
from ingest import Card, TeacherError, find_card, find_teachers
from ingest.teachers import (
    Encoder,
    Output,
    build,
    cropped,
    find_weights,
    load_weights,
    outputs_of,
    preprocess,
    resized,
    weights_of,
)

TIMED_S = 0.5
STATISTICS_TILES = 512  # tiles that set the batch norms' statistics of an untrained network
FLAT = 1e-6  # a channel with less spread counts as constant

Array = npt.NDArray[np.floating]
RgbArray = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Runner:
    """An encoder with its weights, and the column that it computes.

    Attributes:
        encoder: the network.
        output: the column.
        parameters: number of the network's parameters.
        threads: number of threads among which the tiles are divided.
    """

    encoder: Encoder
    output: Output
    parameters: int
    threads: int

    def __call__(self, pixels: RgbArray, tile_id: Int64Array) -> Float32Array:
        """Embed RGB tiles [B, H, W, 3] as vectors [B, D]."""
        return self.encoder(pixels, tile_id, [self.output])[self.output.column]

    def embed(self, tiles: SampledTiles) -> Float32Array:
        """Embed all tiles [N, D]."""
        return np.concatenate([self(pixels, keys) for keys, pixels in tiles.batches()])

    def seconds_per_tile(self, tiles: SampledTiles) -> float:
        """Measure the seconds per tile of resizing and the network: the least of several runs.

        The tiles are decoded before, and only as many as keep all threads busy: on a CPU a large
        teacher needs seconds for each tile.
        """
        keys, pixels = next(tiles.first(self.busy_tiles).batches())
        run_seconds: list[float] = []
        while len(run_seconds) < 2 or sum(run_seconds) < TIMED_S:
            start = time.perf_counter()
            self(pixels, keys)
            run_seconds.append(time.perf_counter() - start)
        return min(run_seconds) / len(keys)

    @property
    def busy_tiles(self) -> int:
        """Return the number of tiles that the encoder computes at the same time."""
        return self.encoder.part_tiles * self.threads


def run_student(lake: Lake, name: str, *, device: str, threads: int) -> Runner:
    """Load a student of pixels with the weights in its folder."""
    return _load_runner(lake, name, device=device, threads=threads)


def _load_runner(lake: Lake, name: str, *, device: str, threads: int) -> Runner:
    (teacher,) = find_teachers(lake.store, [name])
    card = teacher.card
    model = build(card.architecture, card.input_px, card.arguments)
    with weights_of(lake.store, card) as path:
        load_weights(model, path, card)
    return _runner_of(card, model, teacher.outputs[0], device=device, threads=threads)


def _runner_of(
    card: Card, model: nn.Module, output: Output, *, device: str, threads: int
) -> Runner:
    encoder = Encoder(card, model, device=device, threads=threads)
    count = sum(p.numel() for p in model.parameters())
    return Runner(encoder=encoder, output=output, parameters=count, threads=threads)


def run_teacher(lake: Lake, column: str, *, mpp: float, device: str, threads: int) -> Runner:
    """Load a teacher with the weights on this machine; nothing is downloaded.

    Raises:
        DistillError: the weights are not here, are not the weights of the column, or the column
            is no plain embedding of the tile.
    """
    try:
        card = find_card(lake.store, column)
        (output, *more) = outputs_of(column, card)
    except TeacherError as error:
        msg = f"{column}: not a teacher that can be run: {error}"
        raise DistillError(msg) from error
    if more or output.stain or output.normalisation:
        msg = f"{column}: not an embedding of the tile as it is"
        raise DistillError(msg)
    if find_weights(card) is None and not lake.exists(f"students/{card.name}/model.safetensors"):
        msg = f"{column}: weights not here"
        raise DistillError(msg)
    try:
        (teacher,) = find_teachers(lake.store, [column])
        _refuse_other_weights(lake, column, mpp, teacher.sha256)
        _refuse_other_fields(lake, column, mpp)
        return _load_runner(lake, column, device=device, threads=threads)
    except (TeacherError, LakeError) as error:
        msg = f"{column}: {error}"
        raise DistillError(msg) from error


def _refuse_other_fields(lake: Lake, column: str, mpp: float) -> None:
    fov = lake.identity(column, mpp=mpp).get("fov")
    if fov is not None:
        msg = f"{column}: its field of view is {fov['px']} px at {fov['mpp']} mpp, not the tile"
        raise DistillError(msg)


def _refuse_other_weights(lake: Lake, column: str, mpp: float, sha256: str) -> None:
    stored = lake.identity(column, mpp=mpp).get("weights_sha256")
    if stored != sha256:
        msg = f"{column}: the weights here are others than those that made the column"
        raise DistillError(msg)


def run_undistilled(
    card: Card, tiles: SampledTiles, *, seed: int, device: str, threads: int
) -> Runner:
    """Build a student's network before any training: random weights of a fixed seed.

    Fresh batch norms pass their input on, so the output of a deep network may vanish or overflow,
    and the comparison would be with rounding errors. The statistics of its batch norms are
    therefore plain means over the batches of 512 training tiles that pass through once; no
    parameter is learned. Networks without batch norm are not changed.
    """
    card = replace(card, name=f"undistilled-{card.architecture}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(card.architecture, card.input_px, card.arguments)
    _set_batch_norms(model, card, tiles.first(STATISTICS_TILES))
    (output,) = outputs_of(card.name, card)
    return _runner_of(card, model, output, device=device, threads=threads)


def _set_batch_norms(model: nn.Module, card: Card, tiles: SampledTiles) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.inference_mode():
        for _, pixels in tiles.batches():
            sized = resized(pixels, card.resize_px or card.input_px, card.interpolation)
            model(preprocess(cropped(sized, card.input_px), card.mean, card.std))
    model.eval()


# ---------------------------------------------------------------------- principal components


@dataclass(frozen=True, kw_only=True)
class Pca:
    """Principal components of all teachers' features side by side, each channel standardised.

    Attributes:
        mean: mean of each channel on the training tiles [D].
        spread: standard deviation [D]; 1 for a constant.
        axes: the components as columns of length 1 [D, E].
    """

    mean: Float64Array
    spread: Float64Array
    axes: Float64Array

    def __call__(self, features: Mapping[str, Array]) -> Float32Array:
        """Return the components [N, E] of raw features by teacher, in the order of the fit."""
        x_ND = _side_by_side(features)
        components: Float32Array = (((x_ND - self.mean) / self.spread) @ self.axes).astype(
            np.float32
        )
        return components


def fit_pca(features: Mapping[str, Array], width: int) -> Pca:
    """Fit the first `width` components on training tiles, or as many as tiles and channels allow.

    No linear map to this width keeps more of all teachers' features, but all teachers must be run.
    """
    x_ND = _side_by_side(features)
    mean, spread = x_ND.mean(axis=0), x_ND.std(axis=0)
    spread[spread < FLAT] = 1.0
    z_ND = (x_ND - mean) / spread
    dual = len(z_ND) < z_ND.shape[1]
    eigenvalues, vectors = np.linalg.eigh(z_ND @ z_ND.T if dual else z_ND.T @ z_ND)
    kept = [
        at for at in np.argsort(-eigenvalues)[:width] if eigenvalues[at] > FLAT * eigenvalues.max()
    ]
    axes = z_ND.T @ vectors[:, kept] if dual else vectors[:, kept]
    return Pca(mean=mean, spread=spread, axes=axes / np.linalg.norm(axes, axis=0))


def _side_by_side(features: Mapping[str, Array]) -> Float64Array:
    return np.concatenate([x.astype(np.float64) for x in features.values()], axis=1)


def joined_features(parts: Sequence[SampledTiles], teachers: Sequence[str]) -> dict[str, Array]:
    """Join the teachers' features of tiles of several mpps."""
    return {name: np.concatenate([part.features[name] for part in parts]) for name in teachers}
