"""What a lake and results show in a terminal and a notebook: short, escaped, and never an error."""

import base64
import io
import json
import re
import shutil
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurestore import (
    DamageError,
    Lake,
    LakeError,
    ResultDict,
    Shown,
    create_lake,
    open_lake,
    verify,
)
from ingest.ray_ingest import IngestResult
from ingest.teachers.ray_extract import ExtractResult
from tests.worlds.example_lake import SLIDES, make_example, thumbnail
from tests.worlds.training_lake import CONFIG, cut, register, row_of_cells

EVIL = "<script>alert('x')</script>"
VOID = {"img", "br", "meta", "link"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make_example(tmp_path_factory.mktemp("shown") / "lake")


class Page(HTMLParser):
    """A page as a browser would take it apart; tags must be closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(shown: object) -> Page:
    html = shown._repr_html_()  # type: ignore[attr-defined]
    assert len(html) < 200_000
    return Page(html)


def test_a_lake_in_one_line(lake: Lake) -> None:
    place = f"Lake('{lake.uri}', version {lake.version}: "
    counts = "3 slides, 37 tiles at mpp 0.5, 18 tiles at mpp 1.0, 2 teachers)"
    assert repr(lake) == place + counts


def test_a_lakes_page_has_counts_columns_and_pictures(lake: Lake) -> None:
    shown = page(lake)
    assert f"{lake.uri} · version {lake.version}" in shown.text
    for word in ("3 ready", "37", "efficientnet_lite0", "8", *SLIDES):
        assert word in shown.text
    pictures = [source for source in shown.sources if source.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == len(shown.sources) == 3  # nothing is loaded from elsewhere
    for number, source in enumerate(pictures):
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")
        truth = Image.open(io.BytesIO(thumbnail(number))).convert("RGB")
        assert np.abs(np.asarray(picture, int) - np.asarray(truth, int)).mean() < 8
    assert "script" not in shown.tags
    assert "color: inherit" in shown.text  # the style: light and dark


def test_a_page_is_escaped_and_bounded(tmp_path: Path) -> None:
    """Forty slides with evil names and large pictures, half of them failed with long reasons."""
    lake = create_lake(tmp_path / "lake", CONFIG)
    names = [f"{number:02d} {EVIL}" for number in range(40)]
    numbers = register(lake, names)
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    cuts = [cut(lake, numbers[name], name, {0.5: row_of_cells(1)}) for name in names[:20]]
    lake.committer.commit_slides(
        [replace(one, row={**one.row, "thumbnail": out.getvalue()}) for one in cuts]
    )
    lake.committer.fail(
        [
            {"slide": numbers[name], "slide_id": name, "uri": "x", "reason": EVIL * 900}
            for name in names[20:]
        ]
    )
    shown = page(lake.refreshed())
    assert "script" not in shown.tags
    assert EVIL in shown.text
    assert shown.tags.count("img") == 12
    assert len(re.findall(r"alert", shown.text)) < 12 * 12


def test_a_damaged_lake_shows_what_it_can(tmp_path: Path) -> None:
    make_example(tmp_path / "lake")
    lake = open_lake(tmp_path / "lake")
    shutil.rmtree(tmp_path / "lake" / "features" / "mpp0.5.lance")
    assert repr(lake).startswith(f"Lake('{lake.uri}', version {lake.version}) (can't be shown: ")
    shown = page(lake)
    assert "can't be shown" in shown.text
    assert "3 ready" in shown.text
    shutil.rmtree(tmp_path / "lake")
    lake = Lake.__new__(Lake)  # not even a store
    assert "can't be shown" in page(lake).text
    assert "can't be shown" in repr(lake)


def test_completion_shows_what_a_user_uses(lake: Lake) -> None:
    names = {name for name in dir(lake) if not name.startswith("_")}
    assert names == {
        *("annotation", "annotations", "bag", "bags", "catalog", "config", "features", "identity"),
        "licence",
        *("info", "nearest", "pairs", "pictures", "refreshed", "slide_encodings"),
        *("slide_features", "slide_means", "slides", "snapshot"),
        *("snapshots", "stream", "teachers", "thumbnail", "tiles", "to_anndata", "uri", "version"),
        "webdataset",
    }
    assert all(hasattr(lake, name) for name in dir(lake))


def test_thumbnails(lake: Lake, tmp_path: Path) -> None:
    picture = lake.thumbnail("P000-2")
    assert (picture.mode, picture.size) == ("RGB", (64, 48))
    truth = np.asarray(Image.open(io.BytesIO(thumbnail(1))).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(picture), truth)
    with pytest.raises(LakeError, match="slide 'x' is not in"):
        lake.thumbnail("x")
    other = create_lake(tmp_path / "lake", CONFIG)
    [number] = register(other, ["a"]).values()
    one = cut(other, number, "a", {0.5: row_of_cells(1)})
    other.committer.commit_slides([one])
    with pytest.raises(LakeError, match=r"'a' has no thumbnail in .*imported slides have none"):
        other.refreshed().thumbnail("a")
    broken = replace(one, row={**one.row, "thumbnail": b"\xff\xd8 not really", "fingerprint": "2"})
    other.committer.commit_slides([broken])
    with pytest.raises(DamageError, match="the thumbnail of slide 'a' is no picture"):
        other.refreshed().thumbnail("a")
    assert page(other.refreshed()).tags.count("img") == 0


def test_bags_and_results_in_one_line(lake: Lake) -> None:
    bag = lake.bag("P000-1", list(SHAPES), mpp=0.5)
    text = repr(bag)
    assert text.startswith("Bag(slide_id='P000-1', tile_id=int64 [12], x=int32 [12], ")
    assert "'efficientnet_lite0': float16 [12, 8]" in text
    assert "float16 [12, 6]" in page(bag).text
    failed = [{"slide": EVIL, "reason": EVIL}] * 40
    result = IngestResult(ready=7, failed=failed, tiles={"0.5": 1234}, seconds=3.14159)
    assert repr(result).startswith("IngestResult(ready=7, failed=[40 entries], tiles={'0.5': 1234}")
    assert "and 28 more" in page(result).text
    assert f"slide: {EVIL}, reason: {EVIL}" in page(result).text
    assert "script" not in page(result).tags
    assert repr(ExtractResult(ready=2)).startswith("ExtractResult(teachers={}, failed=[0 entries]")
    verdict = verify(lake)
    assert repr(verdict).startswith("Verdict(version=")
    assert "damage=[0 entries]" in repr(verdict)
    for shown in (bag, result, verdict):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 260


SHAPES = {"efficientnet_lite0": 8, "efficientnet_lite1": 6}


def test_a_run_shows_its_scores_and_its_page(tmp_path: Path) -> None:
    metric = {"metric": "auroc", "estimate": 0.8123, "low": 0.7, "high": 0.9}
    run = {
        "run": "mil-0123",
        "target": EVIL,
        "metrics": {f"arm {EVIL}": metric, "none": {"metric": "auroc", "estimate": None}},
        "patients": 24,
    }
    result = ResultDict(run, name="mil", uri=str(tmp_path / "a lake"))
    assert result == run
    assert json.loads(json.dumps(result)) == run
    assert "auroc 0.812 [0.700, 0.900]" in repr(result)
    shown = page(result)
    assert "script" not in shown.tags
    assert "auroc 0.812 [0.700, 0.900]" in shown.text
    assert "auroc undefined" in shown.text
    assert shown.sources == [f"file://{tmp_path}/a%20lake/runs/mil-0123/report.html"]
    remote = page(ResultDict(run, name="mil", uri="s3://lab/lake"))
    assert "s3://lab/lake/runs/mil-0123/report.html" in remote.text
    assert remote.sources == []
    broken = ResultDict({"run": "x", "metrics": 3}, name="mil")
    assert repr(broken).startswith("mil (can't be shown: ")
    assert "can't be shown" in page(broken).text
    assert page(ResultDict({"k": [EVIL], EVIL: 1}, name=EVIL)).tags.count("script") == 0


def test_an_object_that_fails_is_still_shown() -> None:
    @dataclass(kw_only=True, repr=False)
    class Odd(Shown):
        one: object

    class Angry:
        def __repr__(self) -> str:
            raise RuntimeError(EVIL)

    assert repr(Odd(one=Angry())) == f"Odd (can't be shown: {EVIL})"
    assert "script" not in page(Odd(one=Angry())).tags
