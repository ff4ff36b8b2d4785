"""The tables of rates and prices that an estimate reads: two TOML files, and users' own.

A user's file has the same form; what it has replaces what the file beside this module has.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.errors import InputError
from ingest.estimate.spans import Span

FOLDER = Path(__file__).parent
RATES, PRICES = FOLDER / "rates.toml", FOLDER / "prices.toml"
PRICE_NAMES = ("storage_gb_month", "writes_1000", "reads_1000", "core_hour")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The rates at which encoders run.

    Attributes:
        gpus: peak of each GPU in TFLOP/s, dense, in 16 bits.
        gpu_use: share of the peak that an encoder reaches.
        gflops: billions of operations for one tile, by card.
        measured: tiles a second on one GPU, by teacher and GPU.
        sources: where each table is from, by its name.
    """

    gpus: Mapping[str, float]
    gpu_use: Span
    gflops: Mapping[str, float]
    measured: Mapping[str, Mapping[str, Span]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prices:
    """The prices of what is used.

    Attributes:
        currency: name of the currency.
        each: price by `storage_gb_month`, `writes_1000`, `reads_1000` and `core_hour`.
        gpu_hour: price of an hour of one GPU.
        source: where the prices are from.
    """

    currency: str
    each: Mapping[str, Span]
    gpu_hour: Mapping[str, Span]
    source: str


def read_rates(own: str | None = None) -> Rates:
    """Return the rates, with those of a user's file first.

    Raises:
        InputError: the file can't be read, or holds no such numbers.
    """
    merged = _merged(RATES, own)
    where = own or str(RATES)
    gpus = {
        name: _span(gpu.get("tflops"), f"{where}, gpus.{name}.tflops").low
        for name, gpu in merged.get("gpus", {}).items()
    }
    return Rates(
        gpus=gpus,
        gpu_use=_span(merged.get("gpu_use"), f"{where}, gpu_use"),
        gflops={
            name: _span(number, f"{where}, gflops.{name}").low
            for name, number in merged.get("gflops", {}).items()
        },
        measured={
            teacher: {gpu: _span(rate, f"{where}, measured.{teacher}") for gpu, rate in by.items()}
            for teacher, by in merged.get("measured", {}).items()
        },
        sources=merged.get("sources", {}),
    )


def read_prices(own: str | None = None) -> Prices:
    """Return the prices, with those of a user's file first.

    Raises:
        InputError: the file can't be read, or holds no such numbers.
    """
    merged = _merged(PRICES, own)
    where = own or str(PRICES)
    return Prices(
        currency=str(merged.get("currency", "")),
        each={name: _span(merged.get(name), f"{where}, {name}") for name in PRICE_NAMES},
        gpu_hour={
            gpu: _span(price, f"{where}, gpu_hour.{gpu}")
            for gpu, price in merged.get("gpu_hour", {}).items()
        },
        source=str(merged.get("source", "")),
    )


def _merged(path: Path, own: str | None) -> dict[str, Any]:
    table = tomllib.loads(path.read_text())
    if own is None:
        return table
    try:
        more = tomllib.loads(Path(own).read_text())
    except (OSError, ValueError) as error:
        msg = f"{own} can't be read as TOML ({error}); a table looks like {path}"
        raise InputError(msg) from error
    if unknown := sorted(set(more) - set(table) - {"measured"}):
        msg = f"{own} has {', '.join(unknown)}; there are {', '.join([*table, 'measured'])}"
        raise InputError(msg)
    return _deep(table, more)


def _deep(table: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    for name, entry in more.items():
        inner = table.get(name)
        table[name] = _deep(inner, entry) if isinstance(inner, dict) else entry
    return table


def _span(number: object, where: str) -> Span:
    """Return a number, or a list of a low and a high number, as a span."""
    pair: list[Any] = number if isinstance(number, list) else [number, number]
    good = len(pair) == 2 and all(
        isinstance(end, int | float) and not isinstance(end, bool) and end >= 0 for end in pair
    )
    if not good or pair[0] > pair[1]:
        msg = f"{where} is {number!r}; a number of 0 or more is needed, or [low, high]"
        raise InputError(msg)
    return Span(float(pair[0]), float(pair[1]))
