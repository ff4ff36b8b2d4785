"""`lake.json`: the settings that are fixed when a lake is created, and its format."""

import json
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from typing import Self

from featurestore.errors import FormatError, LakeError, NewerFormatError
from featurestore.ids import mpp_code

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class LakeConfig:
    """Settings that all tiles of a lake share.

    Attributes:
        tile_px: side of a stored tile in pixels.
        stride_px: pixels from one tile to the next, if fewer than `tile_px`: tiles then overlap.
        mpps: microns per pixel of the stored tiles, finest first; integer ratios to the finest.
        tissue_min: least share of tissue for a tile to be kept.
        jpeg_quality: quality of re-encoded tiles.
        jpeg_subsampling: chroma subsampling of re-encoded tiles, "420", "422" or "444".
        passthrough: mpps whose tiles are the slides' own JPEGs, copied as they are.
        mix_codecs: whether a slide without such JPEGs is encoded at these mpps, or fails.
        format: version of the layout on disk.

    Examples:
        >>> config = sl.LakeConfig(tile_px=224, mpps=(0.5, 2.0))
        >>> config.ratio(2.0), config.step_px
        (4, 224)
    """

    tile_px: int = 256
    stride_px: int | None = None
    mpps: tuple[float, ...] = (0.5,)
    tissue_min: float = 0.1
    jpeg_quality: int = 90
    jpeg_subsampling: str = "444"
    passthrough: tuple[float, ...] = ()
    mix_codecs: bool = False
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not self.mpps or list(self.mpps) != sorted(set(self.mpps)):
            msg = f"mpps {list(self.mpps)} given; at least one, each once, finest first"
            raise LakeError(msg)
        codes = [mpp_code(mpp) for mpp in self.mpps]
        if any(code % codes[0] for code in codes):
            msg = (
                f"mpps {list(self.mpps)} do not nest: each must be a whole multiple of the "
                f"finest, {self.mpps[0]}"
            )
            raise LakeError(msg)
        if others := set(self.passthrough) - set(self.mpps):
            msg = f"passthrough at {sorted(others)} given; the mpps are {list(self.mpps)}"
            raise LakeError(msg)
        if not 16 <= self.tile_px <= 4096:
            msg = f"tile_px {self.tile_px} given; allowed are 16 to 4096"
            raise LakeError(msg)
        if self.stride_px == self.tile_px:
            object.__setattr__(self, "stride_px", None)
        if not 1 <= self.step_px <= self.tile_px:
            msg = f"stride_px {self.stride_px} given; allowed are 1 to tile_px, {self.tile_px}"
            raise LakeError(msg)
        if self.passthrough and self.stride_px:
            msg = f"stride_px {self.stride_px} given; tiles that are copied do not overlap"
            raise LakeError(msg)
        if not 0 <= self.tissue_min <= 1:
            msg = f"tissue_min {self.tissue_min} given; it is a share from 0 to 1"
            raise LakeError(msg)

    @property
    def step_px(self) -> int:
        """Return the number of pixels from one tile to the next.

        Examples:
            >>> sl.LakeConfig(tile_px=224, stride_px=112).step_px
            112
        """
        return self.tile_px if self.stride_px is None else self.stride_px

    def ratio(self, mpp: float) -> int:
        """Return the number of finest-grid tiles side by side in one tile of `mpp`.

        Examples:
            >>> sl.LakeConfig(mpps=(0.5, 2.0)).ratio(2.0)
            4
        """
        return mpp_code(mpp) // mpp_code(self.mpps[0])

    def to_json(self) -> bytes:
        """Return the bytes of `lake.json`.

        Examples:
            >>> sl.LakeConfig().to_json().splitlines()[1]
            b'  "tile_px": 256,'
        """
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, *, uri: str) -> Self:
        """Return the settings that the content of a `lake.json` holds.

        Raises:
            NewerFormatError: the format is newer than this version reads.
            FormatError: the content is not a lake's settings.

        Examples:
            >>> config = sl.LakeConfig(mpps=(0.25, 1.0))
            >>> sl.LakeConfig.from_json(config.to_json(), uri="my-lake") == config
            True
        """
        try:
            fields = json.loads(content)
            lake_format = int(fields["format"])
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{uri}/lake.json is not a lake's description: {error}"
            raise FormatError(msg) from error
        if lake_format < 1:
            msg = f"{uri}/lake.json names format {lake_format}; formats begin at 1"
            raise FormatError(msg)
        if lake_format > FORMAT:
            msg = (
                f"{uri} is a lake of format {lake_format}; this slidelake reads up to {FORMAT}: "
                "update slidelake"
            )
            raise NewerFormatError(msg)
        # What a later slidelake adds within a format changes nothing that an earlier one reads.
        settings = {f.name: fields[f.name] for f in dataclass_fields(cls) if f.name in fields}
        try:
            lists = {
                name: tuple(float(mpp) for mpp in settings.get(name, ()))
                for name in ("mpps", "passthrough")
            }
            return cls(**{**settings, **lists})
        except (ValueError, TypeError) as error:
            msg = f"{uri}/lake.json is not a lake's description: {error}"
            raise FormatError(msg) from error
