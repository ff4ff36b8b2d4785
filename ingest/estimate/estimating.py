"""Tiles, bytes, requests, hours and money for many slides, from a few that were looked at.

Every number is a span, and every span has its assumption: nobody knows the second digit of such a
number beforehand. Pure arithmetic; what it goes by comes from `slide_facts` and `estimate_tables`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ingest.errors import InputError
from ingest.estimate.estimate_tables import Prices, Rates
from ingest.estimate.slide_facts import SlideFacts
from ingest.estimate.spans import Span
from ingest.teachers.outputs import Output

FEATURE_BYTES = 2  # float16
#: Bytes of a tile beside its pixels and features: 20 in its shard's index, the rest in the table.
TILE_ROW_BYTES = Span(60, 130)
SLIDE_ROW_BYTES = Span(10_000, 40_000)  # with a thumbnail and a mask
FRAGMENT_SLIDES, FRAGMENT_ROWS = 64, 250_000
#: Requests of a commit: tables, transactions, roots, the lease; and objects that it leaves.
COMMIT_REQUESTS, COMMIT_OBJECTS = Span(30, 90), Span(4, 12)
#: Requests by which an extract reads a slide's shard at one mpp, with its index.
READS_PER_SHARD = Span(2, 4)
NONE = Span(0, 0)
SPREAD = 0.2  # of a rate that was measured on other tiles of this lake


@dataclass(frozen=True, kw_only=True)
class TeacherNeed:
    """What a teacher needs to run on all tiles.

    Attributes:
        teacher: its name.
        column_bytes: bytes of its features.
        gpu_hours: hours of one GPU; None if only a rate on CPUs is known.
        core_hours: hours of one CPU core; None if it was not measured on CPUs.
        why: where the rate is from.
    """

    teacher: str
    column_bytes: Span
    gpu_hours: Span | None
    core_hours: Span | None
    why: str


@dataclass(kw_only=True)
class Estimate:
    """What an ingest and an extract of many slides would take.

    Attributes:
        slides: number of slides.
        source: what it is based on.
        gpu: name of the GPU that hours are of.
        tiles: number of tiles by mpp.
        tile_bytes: bytes of all shards.
        index_bytes: bytes of the tables and indexes beside tiles and features.
        objects: number of objects in a bucket, after a compact and a vacuum at best.
        writes: requests that write or list.
        reads: requests that read.
        cut_core_hours: hours of one core to cut the slides; None if not known.
        teachers: needs of each teacher.
        prices: money by what it is for; `storage_month` for each month.
        currency: of the prices.
        assumptions: a sentence each.
    """

    slides: int
    source: str
    gpu: str
    tiles: dict[float, Span] = field(default_factory=dict)
    tile_bytes: Span = NONE
    index_bytes: Span = NONE
    objects: Span = NONE
    writes: Span = NONE
    reads: Span = NONE
    cut_core_hours: Span | None = None
    teachers: list[TeacherNeed] = field(default_factory=list)
    prices: dict[str, Span] = field(default_factory=dict)
    currency: str = ""
    assumptions: list[str] = field(default_factory=list)

    @property
    def feature_bytes(self) -> Span:
        """Return the bytes of all columns."""
        return sum((need.column_bytes for need in self.teachers), NONE)

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON; a span is an object of `low` and `high`."""
        by_mpp = {f"{mpp:g}": asdict(tiles) for mpp, tiles in self.tiles.items()}
        return {**asdict(self), "tiles": by_mpp, "feature_bytes": asdict(self.feature_bytes)}


def estimated(
    facts: SlideFacts,
    *,
    slides: int,
    teachers: Mapping[str, Sequence[Output]],
    rates: Rates,
    prices: Prices,
    records: Mapping[str, Mapping[str, Mapping[str, float]]],
    gpu: str,
) -> Estimate:
    """Return what so many slides would take.

    Args:
        facts: what is known of the slides.
        slides: number of slides.
        teachers: columns of each teacher.
        rates: table of rates.
        prices: table of prices.
        records: rates that this lake has measured; see `extract_record`.
        gpu: name of a GPU of the table of rates.

    Raises:
        InputError: there is nothing to go by for a teacher, or no such GPU.
    """
    if gpu not in rates.gpus:
        msg = f"no GPU '{gpu}' in the table of rates; there are {', '.join(rates.gpus)}"
        raise InputError(msg)
    whole = Estimate(slides=slides, source=facts.source, gpu=gpu, currency=prices.currency)
    whole.assumptions += facts.assumptions
    whole.tiles = {mpp: each * slides for mpp, each in facts.tiles.items()}
    tiles = sum(whole.tiles.values(), NONE)
    for mpp, count in whole.tiles.items():
        whole.tile_bytes += count * facts.tile_bytes[mpp]
    whole.index_bytes = tiles * TILE_ROW_BYTES + SLIDE_ROW_BYTES * slides
    if facts.cut_s is not None:
        whole.cut_core_hours = facts.cut_s * (slides / 3600)
        whole.assumptions.append("a core cuts a slide as fast as it did those looked at")
    for name, outputs in teachers.items():
        whole.teachers.append(_need(name, outputs, tiles, rates, records, gpu))
    columns = sum(len(outputs) for outputs in teachers.values())
    _count_requests(whole, facts, columns)
    _add_prices(whole, prices)
    return whole


def _need(
    name: str,
    outputs: Sequence[Output],
    tiles: Span,
    rates: Rates,
    records: Mapping[str, Mapping[str, Mapping[str, float]]],
    gpu: str,
) -> TeacherNeed:
    width = sum(output.dim for output in outputs)
    record = records.get(outputs[0].column, {})
    gpu_rate, why = _gpu_rate(name, record, rates, gpu)
    core_rate = None
    if cpu := record.get("cpu"):
        core_rate = _measured(cpu, cpu["cpus_per_worker"])
        why += f"; on CPUs by this lake's own run of {cpu['tiles']:,.0f} tiles"
    if gpu_rate is None and core_rate is None:
        msg = (
            f"nothing is known of how fast '{name}' runs: extract it once on a lake of some slides "
            "and estimate from that lake, or give its rate in a table (--rates)"
        )
        raise InputError(msg)
    return TeacherNeed(
        teacher=name,
        column_bytes=tiles * (width * FEATURE_BYTES),
        gpu_hours=tiles.over(gpu_rate) * (1 / 3600) if gpu_rate else None,
        core_hours=tiles.over(core_rate) * (1 / 3600) if core_rate else None,
        why=why.removeprefix("; "),
    )


def _measured(record: Mapping[str, float], share: float) -> Span:
    """Return tiles a second on one GPU or core by a run; few tiles say little."""
    spread = SPREAD + 2 / math.sqrt(max(1.0, record["tiles"]))
    return Span.around(record["tiles_per_s_per_worker"] / max(1e-9, share), min(0.9, spread))


def _gpu_rate(
    name: str, record: Mapping[str, Mapping[str, float]], rates: Rates, gpu: str
) -> tuple[Span | None, str]:
    """Return tiles a second on one GPU and where that is from: a run of the lake's goes first."""
    if cuda := record.get("cuda"):
        return _measured(cuda, cuda["gpus_per_worker"]), (
            f"this lake's own run of {cuda['tiles']:,.0f} tiles, on its GPUs, whatever --gpu is"
        )
    card = name.partition(":")[0].partition("@")[0]
    if rate := rates.measured.get(name, rates.measured.get(card, {})).get(gpu):
        return rate, f"the table of rates: {rate.text('tiles/s')} on one {gpu}"
    if card in rates.gflops:
        rate = rates.gpu_use * (rates.gpus[gpu] * 1000 / rates.gflops[card])
        return rate, (
            f"{rates.gflops[card]:,.0f} GFLOP a tile, at {rates.gpu_use.low:.0%} to "
            f"{rates.gpu_use.high:.0%} of the {rates.gpus[gpu]:,.0f} TFLOP/s of one {gpu}: not "
            "measured"
        )
    return None, ""


def _count_requests(whole: Estimate, facts: SlideFacts, columns: int) -> None:
    """Count the objects of a bucket, and the requests that make and read them."""
    shards = 2 * whole.slides * len(facts.tiles)
    most = [
        Span(
            max(whole.slides / (4 * FRAGMENT_SLIDES), tiles.low / FRAGMENT_ROWS),
            max(whole.slides / FRAGMENT_SLIDES, tiles.high / FRAGMENT_ROWS),
        )
        for tiles in whole.tiles.values()
    ]
    fragments = sum(most, NONE)
    files = fragments * (1 + columns)
    commits = Span(
        math.ceil(whole.slides / FRAGMENT_SLIDES / 2), math.ceil(whole.slides / FRAGMENT_SLIDES)
    )
    extract_commits = fragments * (columns / 16)
    whole.objects = Span.exactly(shards) + files
    whole.objects += Span(0, ((commits + extract_commits) * COMMIT_OBJECTS).high)
    whole.writes = Span.exactly(shards) + files
    whole.writes += (commits + extract_commits) * COMMIT_REQUESTS * 0.4
    whole.reads = (commits + extract_commits) * COMMIT_REQUESTS * 0.6
    if columns:
        whole.reads += READS_PER_SHARD * (whole.slides * len(facts.tiles))
    each, reads = COMMIT_REQUESTS.text("requests"), READS_PER_SHARD.text("requests")
    whole.assumptions += [
        f"{FRAGMENT_SLIDES} slides or {FRAGMENT_ROWS:,} tiles a commit, {each} each",
        f"one extract with all teachers, which reads a shard by {reads}",
        "requests that read the slides themselves are not counted",
        "objects: after a compact and a vacuum, to before",
    ]


def _add_prices(whole: Estimate, prices: Prices) -> None:
    """Add what is paid for storage each month, and once for requests and hours."""
    stored = whole.tile_bytes + whole.feature_bytes + whole.index_bytes
    each = prices.each
    whole.prices["storage_month"] = stored * 1e-9 * each["storage_gb_month"]
    whole.prices["requests"] = (
        whole.writes * 1e-3 * each["writes_1000"] + whole.reads * 1e-3 * each["reads_1000"]
    )
    if whole.cut_core_hours is not None:
        whole.prices["ingest"] = whole.cut_core_hours * each["core_hour"]
    gpu_hour = prices.gpu_hour.get(whole.gpu)
    for need in whole.teachers:
        if need.gpu_hours is not None and gpu_hour is not None:
            whole.prices[need.teacher] = need.gpu_hours * gpu_hour
        elif need.gpu_hours is None and need.core_hours is not None:
            whole.prices[need.teacher] = need.core_hours * each["core_hour"]
    if gpu_hour is None and any(need.gpu_hours for need in whole.teachers):
        whole.assumptions.append(f"no price of an hour of {whole.gpu} is in the table of prices")
    whole.assumptions.append(f"prices: {prices.source}")
