"""`slidelake estimate`: the arithmetic by hand, what it goes by, what it refuses, and its table."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster import Placement
from featurestore import Lake, LakeConfig, Store, create_lake, open_lake
from ingest import CARDS, InputError
from ingest.estimate.estimate_lake import estimate
from ingest.estimate.estimate_tables import read_prices, read_rates
from ingest.estimate.extract_record import keep_rates, read_rates_of
from ingest.estimate.slide_facts import facts_of_lake, mean_span
from ingest.estimate.spans import Span
from tests.conftest import REAL_SLIDE

GPU = Placement(device="cuda", workers=2, cpus_per_worker=8.0, gpus_per_worker=0.5)
CPU = Placement(device="cpu", workers=1, cpus_per_worker=4.0, gpus_per_worker=0.0)


def test_a_lake_of_two_slides_by_hand(filled: Path) -> None:
    lake = open_lake(filled)
    counts = lake.tiles_of(mpp=0.5)["tiles"].to_numpy()
    result = estimate(str(filled), ["uni2_h", "virchow2:cls"], slides=1000, gpu="a100")
    mean, n = counts.mean(), len(counts)
    half = max(0.1, 2 * counts.std(ddof=1) / np.sqrt(n) / mean)
    assert result.tiles[0.5].low == pytest.approx(1000 * mean * (1 - half))
    assert result.tiles[0.5].high == pytest.approx(1000 * mean * (1 + half))
    tiles = result.tiles[0.5] + result.tiles[2.0]
    uni, virchow = result.teachers
    assert uni.column_bytes.high == pytest.approx(tiles.high * 1536 * 2)
    assert virchow.column_bytes.high == pytest.approx(tiles.high * 1280 * 2)
    assert result.feature_bytes.low == pytest.approx(tiles.low * (1536 + 1280) * 2)
    # 312 TFLOP/s at 20 to 50 %, and the counted operations of the network
    gflops = read_rates().gflops["uni2_h"]
    assert uni.gpu_hours is not None
    assert uni.gpu_hours.high == pytest.approx(tiles.high / (0.2 * 312e3 / gflops) / 3600)
    assert uni.gpu_hours.low == pytest.approx(tiles.low / (0.5 * 312e3 / gflops) / 3600)
    stored = result.tile_bytes + result.feature_bytes + result.index_bytes
    assert result.prices["storage_month"].high == pytest.approx(stored.high * 1e-9 * 0.023)
    assert result.prices["uni2_h"].low == pytest.approx(uni.gpu_hours.low * 0.8)
    assert result.cut_core_hours is not None


def test_what_was_counted_lies_within_what_was_estimated(filled: Path) -> None:
    """A lake's estimate of itself: its tiles, shards, tables and objects are in the spans."""
    result = estimate(str(filled), ["efficientnet_lite0"])
    store = Store(filled)
    shards = [file for file in store.walk("tiles") if file.path.endswith(".tar")]
    assert result.tile_bytes.low <= sum(file.bytes for file in shards) <= result.tile_bytes.high
    lake = open_lake(filled)
    for mpp, span in result.tiles.items():
        assert span.low <= lake.tiles_of(mpp=mpp)["tiles"].sum() <= span.high
    objects = sum(1 for _ in store.walk(""))
    assert result.objects.low <= objects


def test_one_slide_says_next_to_nothing() -> None:
    assert mean_span(np.array([100])) == Span(50, 200)


def test_more_slides_make_narrower_spans() -> None:
    rng = np.random.default_rng(0)
    few, many = (mean_span(rng.lognormal(7, 1, n)) for n in (5, 500))
    assert many.high / many.low < few.high / few.low


def test_a_run_of_the_lake_goes_before_the_table(lake_copy: Path) -> None:
    before = estimate(str(lake_copy), ["uni2_h"], slides=1000)
    assert "not measured" in before.teachers[0].why
    counts = {"uni2_h": {"tiles": 9000, "seconds": 90.0, "stall": 0.5}}
    keep_rates(Store(lake_copy), counts, GPU)
    need = estimate(str(lake_copy), ["uni2_h"], slides=1000).teachers[0]
    tiles = estimate(str(lake_copy), slides=1000).tiles
    high = sum(span.high for span in tiles.values())
    assert need.gpu_hours is not None
    # 100 tiles a second and worker, half of it stalls, two workers on a GPU; 22 % either way
    assert need.gpu_hours.high == pytest.approx(high / (100 * (0.8 - 2 / 9000**0.5)) / 3600)
    assert "this lake's own run of 9,000 tiles" in need.why


def test_an_extract_leaves_its_rates(filled: Path) -> None:
    records = read_rates_of(Store(filled))
    assert {"efficientnet_lite0", "efficientnet_lite1"} <= records.keys()
    record = records["efficientnet_lite0"]["cpu"]
    assert record["tiles"] > 0
    assert record["tiles_per_s_per_worker"] > 0
    need = estimate(str(filled), ["efficientnet_lite0"], slides=10).teachers[0]
    assert need.core_hours is not None
    assert "on CPUs by this lake's own run" in need.why


def test_the_run_with_more_tiles_stays(tmp_path: Path) -> None:
    store = Store(create_lake(tmp_path / "lake", LakeConfig()).uri)
    for tiles, placement in ((900, CPU), (10, CPU), (20, GPU)):
        keep_rates(store, {"a": {"tiles": tiles, "seconds": 1.0, "stall": 0.0}}, placement)
    records = read_rates_of(store)["a"]
    assert (records["cpu"]["tiles"], records["cuda"]["tiles"]) == (900, 20)
    store.write_bytes("measured.json", b"{")
    assert read_rates_of(store) == {}


def test_a_folder_of_slides_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.svs").symlink_to(REAL_SLIDE)
    (tmp_path / "b.svs").write_text("no slide")
    result = estimate(str(tmp_path), ["uni2_h"], slides=100, mpps=[1.0])
    # docs of `ingest`: this slide has 17 tiles at 1 mpp
    assert result.tiles[1.0] == Span(850, 3400)
    assert "1 of 2 slides" in result.source
    assert any("1 of 2 slides can't be cut" in text for text in result.assumptions)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svs", "b.svs"]


def test_nothing_to_go_on_is_refused(tmp_path: Path, filled: Path) -> None:
    (tmp_path / "b.svs").write_text("no slide")
    with pytest.raises(InputError, match="none of 1 slide that were looked at can be cut"):
        estimate(str(tmp_path), ["uni2_h"])
    lake = create_lake(tmp_path / "lake", LakeConfig())
    with pytest.raises(InputError, match=r"has no tiles at 0\.5 mpp to go by"):
        estimate(lake.uri)
    with pytest.raises(InputError, match=r"no GPU 'b999'.*there are a100"):
        estimate(str(filled), ["uni2_h"], gpu="b999")
    with pytest.raises(InputError, match="is a file: extract it once"):
        estimate(str(filled), ["mine.py"])


def test_every_card_has_its_operations() -> None:
    assert read_rates().gflops.keys() == CARDS.keys()


def test_own_tables_replace_ours(tmp_path: Path, filled: Path) -> None:
    rates, prices = tmp_path / "rates.toml", tmp_path / "prices.toml"
    rates.write_text("[measured.uni2_h]\na100 = [400, 500]\n[gpus]\nb1 = {tflops = 10}\n")
    prices.write_text('currency = "EUR"\nstorage_gb_month = 1\n[gpu_hour]\na100 = 2.0\n')
    result = estimate(str(filled), ["uni2_h"], slides=1000, rates=str(rates), prices=str(prices))
    (need,) = result.teachers
    tiles = sum(span.low for span in result.tiles.values())
    assert need.gpu_hours is not None
    assert need.gpu_hours.low == pytest.approx(tiles / 500 / 3600)
    assert result.prices["uni2_h"].low == pytest.approx(2 * tiles / 500 / 3600)
    assert result.currency == "EUR"
    assert "b1" in read_rates(str(rates)).gpus
    assert read_prices(str(prices)).each["reads_1000"] == Span(0.0004, 0.0004)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gpu_use = 'much'", "gpu_use is 'much'; a number of 0 or more"),
        ("gpu_use = [0.5, 0.2]", r"a number of 0 or more is needed, or \[low, high\]"),
        ("speed = 1", "has speed; there are gpu_use"),
        ("gpu_use = ", "can't be read as TOML"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "rates.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=why):
        read_rates(str(path))


def test_an_estimate_is_json(filled: Path) -> None:
    answer = json.loads(json.dumps(estimate(str(filled), ["uni2_h"], slides=10).to_json()))
    assert answer["tiles"]["0.5"].keys() == {"low", "high"}
    assert answer["assumptions"]


def test_facts_of_a_lake_leave_out_what_failed(small: Lake) -> None:
    (row,) = small.committer.register([{"slide_id": "bad", "uri": "bad.svs"}])
    small.committer.fail([{**row, "reason": "no"}])
    facts = facts_of_lake(small.refreshed(), ())
    assert (facts.slides, facts.counted) == (2, 2)
    assert facts.tiles[0.5] == mean_span(np.array([5, 3]))
