"""Encoders in torch: from a card and its weights to embeddings of tiles. No Ray, no lake.

Letters in names: B tiles in a batch, C channels, H W pixels, N tokens, D embedding.
"""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card, Precision
from ingest.teachers.outputs import Output, places

if TYPE_CHECKING:
    from ingest.teachers.onnx_engine import OnnxNetwork

# A CPU's cache holds the early activations of about this many pixels: 4 tiles of 224 px at a time
# run 1.4-1.8 times as fast as 32 (one core, efficientnet_lite0/1; docs/decisions.md).
CACHED_PIXELS = 4 * 224**2
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

RgbArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RunningBatch:
    """A batch of tiles that the encoder is computing.

    Attributes:
        parts: future of each part: its embeddings [B, D] by column, and its seconds of computing.
    """

    parts: Sequence[Future[tuple[dict[str, FloatArray], float]]]

    def result(self) -> dict[str, FloatArray]:
        """Return embeddings [B, D] by column, once all parts are done.

        Raises:
            TeacherError: the network returns other tokens than its card states.
        """
        embeddings = [part.result()[0] for part in self.parts]
        return {
            column: np.concatenate([by_column[column] for by_column in embeddings])
            for column in embeddings[0]
        }

    @property
    def seconds(self) -> float:
        """Return the seconds of computing, summed over all parts."""
        return sum(part.result()[1] for part in self.parts)


class Encoder:
    """A network that is ready to run.

    Every part of a batch gives a tile the bits that a part of `part_tiles` tiles gives it, so that
    the numbers of a tile depend neither on the size of its batch nor on the number of threads. A
    shorter part is filled up with copies of its last tile, though only to the next number of tiles
    at which this network was seen, on this machine, to compute the same bits (`_exact_sizes`).

    Args:
        card: card of the network, which states how it is run.
        model: network with its weights; `forward_features` and `forward_head` are timm's.
        threads: number of parts that are computed at the same time, each by one thread.
        pool: pool of threads, shared with other encoders; None for a separate pool.
        device: torch's name of the device.
        precision: precision of the network's arithmetic; embeddings are float32.
        onnx: the same network in ONNX Runtime, to be run instead.
    """

    def __init__(
        self,
        card: Card,
        model: nn.Module,
        *,
        threads: int = 1,
        pool: ThreadPoolExecutor | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
        onnx: "OnnxNetwork | None" = None,
    ) -> None:
        self.card, self.device, self.precision, self._onnx = card, device, precision, onnx
        self._pool = pool or one_thread_each(threads)
        self._sizes: dict[tuple[str, ...], list[int]] = {}
        self._sizes_lock = threading.Lock()
        self._model = model.eval().requires_grad_(requires_grad=False).to(device)
        self._model.to(memory_format=torch.channels_last)
        prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        if card.grid and prefix_tokens != card.prefix_tokens:
            msg = (
                f"{card.name}: its card has {card.prefix_tokens} prefix tokens, it has "
                f"{prefix_tokens}"
            )
            raise TeacherError(msg)

    def __call__(
        self, tiles: RgbArray, tile_id: Int64Array, outputs: Sequence[Output]
    ) -> dict[str, FloatArray]:
        """Return embeddings [B, D] of RGB tiles [B, H, W, 3], by column; see `start`."""
        return self.start(tiles, tile_id, outputs).result()

    def start(
        self, tiles: RgbArray, tile_id: Int64Array, outputs: Sequence[Output]
    ) -> "RunningBatch":
        """Start a batch and return at once: the next batch may start before it is done.

        Args:
            tiles: RGB tiles [B, H, W, 3] of any size; resized as the card states.
            tile_id: keys of the tiles [B], which decide the patch tokens that are sampled.
            outputs: columns to compute.
        """
        part = self.part_tiles
        parts = [
            self._pool.submit(self._part, tiles[at : at + part], tile_id[at : at + part], outputs)
            for at in range(0, len(tiles), part)
        ]
        return RunningBatch(parts=parts)

    def _part(
        self, tiles: RgbArray, tile_id: Int64Array, outputs: Sequence[Output]
    ) -> tuple[dict[str, FloatArray], float]:
        """Return the embeddings of a part of a batch, and the seconds of its computing.

        Raises:
            TeacherError: the network returns other tokens than its card states.
        """
        at, count = time.perf_counter(), len(tiles)
        if count < self.part_tiles:
            size = next(size for size in self._exact_sizes(outputs) if size >= count)
            tiles, tile_id = (
                np.concatenate([some, np.repeat(some[-1:], size - count, axis=0)])
                for some in (tiles, tile_id)
            )
        side = self.card.resize_px or self.card.input_px
        sized = cropped(resized(tiles, side, self.card.interpolation), self.card.input_px)
        x_BCHW = preprocess(sized, self.card.mean, self.card.std)
        features = self._fitting(x_BCHW, tile_id, outputs)
        kept = {name: values[:count] for name, values in features.items()}
        return kept, time.perf_counter() - at

    @property
    def part_tiles(self) -> int:
        """Return the number of tiles that are computed together."""
        if self.device != "cpu":
            return 64
        return max(1, CACHED_PIXELS // self.card.input_px**2)

    def _exact_sizes(self, outputs: Sequence[Output]) -> list[int]:
        """Return the sizes of parts that give the bits of a full one, the full one's included.

        Kernels are chosen by shapes, and may add in another order at another size. So each power
        of two below `part_tiles` is tried once, on random pixels, which takes as long as two parts.
        """
        columns = tuple(output.column for output in outputs)
        with self._sizes_lock:
            if columns not in self._sizes:
                self._sizes[columns] = self._tried_sizes(outputs)
            return self._sizes[columns]

    def _tried_sizes(self, outputs: Sequence[Output]) -> list[int]:
        full, side = self.part_tiles, self.card.input_px
        pixels = np.random.default_rng(0).integers(0, 256, (full, side, side, 3), np.uint8)
        x_BCHW = preprocess(pixels, self.card.mean, self.card.std)
        tile_id = np.arange(full)
        expected = self._fitting(x_BCHW, tile_id, outputs)
        exact = []
        for size in (1 << power for power in range((full - 1).bit_length())):
            some = x_BCHW[:size].contiguous(memory_format=torch.channels_last)
            features = self._fitting(some, tile_id[:size], outputs)
            if all(np.array_equal(values, expected[n][:size]) for n, values in features.items()):
                exact.append(size)
        return [*exact, full]

    def _fitting(
        self, x_BCHW: Tensor, tile_id: Int64Array, outputs: Sequence[Output]
    ) -> dict[str, FloatArray]:
        """Return the result of `_embed`, in halves where a GPU's memory can't hold all tiles."""
        try:
            return self._embed(x_BCHW, tile_id, outputs)
        except torch.OutOfMemoryError:
            if len(x_BCHW) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(x_BCHW) // 2
        one = self._fitting(x_BCHW[:half], tile_id[:half], outputs)
        other = self._fitting(x_BCHW[half:], tile_id[half:], outputs)
        return {name: np.concatenate([one[name], other[name]]) for name in one}

    def _embed(
        self, x_BCHW: Tensor, tile_id: Int64Array, outputs: Sequence[Output]
    ) -> dict[str, FloatArray]:
        if self._onnx is not None:
            return dict.fromkeys((output.column for output in outputs), self._onnx(x_BCHW))
        with torch.inference_mode(), self._autocast():
            features = self._features(x_BCHW.to(self.device), outputs)
            embeddings = {
                output.column: self._take(output, features, tile_id) for output in outputs
            }
        return {name: values.float().cpu().numpy() for name, values in embeddings.items()}

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, DTYPES[self.precision])

    def _features(self, x_BCHW: Tensor, outputs: Sequence[Output]) -> Mapping[int | None, Tensor]:
        """Return the network's output after its last block (None) and after numbered blocks."""
        layers = sorted({output.layer for output in outputs if output.layer})
        model = self._model
        if not layers:
            return {None: model.forward_features(x_BCHW)}  # type: ignore[operator]
        try:
            last, between = model.forward_intermediates(  # type: ignore[operator]
                x_BCHW,
                indices=[layer - 1 for layer in layers],
                norm=True,
                output_fmt="NLC",
                return_prefix_tokens=True,
            )
        except (AttributeError, AssertionError, IndexError) as error:
            msg = f"{self.card.name} gives no tokens after block {layers[-1]}: {error}"
            raise TeacherError(msg) from error
        tokens = (torch.cat([prefix, patches], dim=1) for patches, prefix in between)
        return {None: last, **dict(zip(layers, tokens, strict=True))}

    def _take(
        self, output: Output, features: Mapping[int | None, Tensor], tile_id: Int64Array
    ) -> Tensor:
        tokens = features[output.layer]
        pooled = self.card.maps and output.pooling in self.card.poolings
        if self.card.grid is None or pooled or output.pooling == "own":
            return self._own(output, tokens)
        patches_BND = self._patches(tokens)
        if output.pooling == "cls":
            return tokens[:, 0]
        if output.pooling == "mean":
            return patches_BND.mean(dim=1)
        if output.pooling == "cls+mean":
            return torch.cat([tokens[:, 0], patches_BND.mean(dim=1)], dim=-1)
        if output.sample is None:
            return patches_BND.flatten(1)
        kept = torch.from_numpy(places(tile_id, patches_BND.shape[1], output.sample))
        if output.pooling == "places":
            return kept
        at = kept.to(patches_BND.device)[..., None].expand(-1, -1, patches_BND.shape[2])
        return patches_BND.gather(1, at).flatten(1)

    def _own(self, output: Output, features: Tensor) -> Tensor:
        embedding: Tensor = self._model.forward_head(features)  # type: ignore[operator]
        if embedding.ndim != 2 or embedding.shape[1] != output.dim:
            msg = (
                f"{self.card.name} gave {list(embedding.shape[1:])} values a tile; its card says "
                f"{output.dim}"
            )
            raise TeacherError(msg)
        return embedding

    def _patches(self, tokens_BND: Tensor) -> Tensor:
        """Return the patch tokens, which must be as many as the card's grid has."""
        if self.card.maps and tokens_BND.ndim == 4:
            tokens_BND = tokens_BND.flatten(2).mT
        height, width = self.card.grid or (0, 0)
        shape = (self.card.prefix_tokens + height * width, self.card.dim)
        if tokens_BND.ndim != 3 or tuple(tokens_BND.shape[1:]) != shape:
            msg = (
                f"{self.card.name} gave tokens {list(tokens_BND.shape[1:])}; its card says "
                f"{self.card.prefix_tokens} + {height} x {width} of {self.card.dim}"
            )
            raise TeacherError(msg)
        return tokens_BND[:, self.card.prefix_tokens :]


def one_thread_each(threads: int) -> ThreadPoolExecutor:
    """Return a pool of this number of threads, in each of which torch computes alone.

    The results then do not depend on the number of threads, as they would within an operation.
    """
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def cropped(tiles: RgbArray, side_px: int) -> RgbArray:
    """Return the middle of tiles [B, H, W, 3], cropped as torchvision's CenterCrop does."""
    top, left = (round((n - side_px) / 2) for n in tiles.shape[1:3])
    return tiles[:, top : top + side_px, left : left + side_px]


def resized(tiles: RgbArray, side_px: int, interpolation: str) -> RgbArray:
    """Return tiles [B, H, W, 3] as squares of `side_px`, antialiased as in PIL and torchvision."""
    if tiles.shape[1] == side_px == tiles.shape[2]:
        return tiles
    x_BCHW = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    sized = F.interpolate(x_BCHW, (side_px, side_px), mode=interpolation, antialias=True)
    pixels: RgbArray = sized.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def preprocess(
    tiles: RgbArray, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Return normalised float32 [B, C, H, W], stored channels last, of RGB tiles [B, H, W, 3]."""
    x_BHWC = torch.from_numpy(tiles).to(torch.float32)
    scale = 1 / (255 * torch.tensor(std))
    shift = torch.tensor(mean) / torch.tensor(std)
    # A permuted view of [B, H, W, C] is channels_last already: no copy.
    return x_BHWC.mul_(scale).sub_(shift).permute(0, 3, 1, 2)
