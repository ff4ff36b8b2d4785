"""The page that an ingest leaves, of real slides cut for it: what it says, shows and loads."""

import base64
import io
import re
import shlex
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image

from featurestore import Lake, LakeConfig, SlideCut, Store, create_lake, open_lake, query
from ingest.cut import cut_or_reason
from ingest.pages.contact_sheet import write_contact_sheet
from ingest.select.named_slides import find_named_slides
from ingest.select.slides_to_cut import sort_out
from tests.conftest import CONFIG, REAL_SLIDE, ROOT
from tests.worlds.small_lake import add_slides

EVIL = "<img src=x onerror=alert(1)>"
GLASS, INK, TISSUE = (243, 243, 243), (40, 60, 170), (200, 120, 170)


class Page(HTMLParser):
    """Cards by slide in their order, and all that the page could load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.kinds: dict[str, str] = {}
        self.pictures: dict[str, str] = {}
        self.alt: list[str] = []
        self.words: dict[str, str] = {"": ""}
        self.commands: list[str] = []
        self._card = ""
        self.feed(html)
        self.words = {card: " ".join(text.split()) for card, text in self.words.items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert not [name for name in attributes if name.startswith("on")]
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("src", "href", "action") if name in attributes]
        if "data-kind" in attributes:
            self._card = attributes["data-name"]
            self.kinds[self._card], self.words[self._card] = attributes["data-kind"], ""
        if tag == "pre":
            self.commands.append("")
        if tag == "img":
            self.pictures[self._card] = attributes["src"]
            self.alt.append(attributes["alt"])

    def handle_endtag(self, tag: str) -> None:
        self._card = "" if tag == "li" else self._card

    def handle_data(self, data: str) -> None:
        if self.tags[-2:] == ["pre", "code"]:
            self.commands[-1] += data
        self.words[self._card] += data


def page_of(lake: Lake, **settings: int) -> Page:
    write_contact_sheet(lake, **settings)
    return Page(lake.read_bytes("ingest.html").decode())


def opened(uri: str) -> Image.Image:
    assert uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2], validate=True)))


def ingested(lake: Lake, inputs: list[Path]) -> Lake:
    """Do what an ingest does, in this process."""
    named = find_named_slides([str(path) for path in inputs], {})
    todo = sort_out(lake.committer.register(named.rows), {})
    outcomes = [cut_or_reason(lake.store, lake.config, row) for row in todo.cut]
    lake.committer.commit_slides([one for one in outcomes if isinstance(one, SlideCut)])
    lake.committer.fail([*todo.failed, *(one for one in outcomes if isinstance(one, dict))])
    return lake.refreshed()


def write_slide(path: Path, size: int, marks: dict[Any, tuple[slice, slice]]) -> None:
    """A slide of glass at 0.5 mpp with rectangles of colour that vary by a few grey levels."""
    pixels = np.full((size, size, 3), GLASS, np.uint8)
    noise = np.random.default_rng(0).integers(-8, 9, (size, size, 1), np.int8)
    for colour, where in marks.items():
        pixels[where] = np.clip(np.array(colour, np.int16) + noise[where], 0, 255)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="zlib",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that fail or are in doubt, each in its way, beside a good one."""
    folder = tmp_path_factory.mktemp("slides")
    real = REAL_SLIDE.read_bytes()
    (folder / "cut-off.svs").write_bytes(real[:900_000])
    (folder / f"{EVIL.replace('/', '')}.svs").write_text("this is no slide")
    (folder / "no-mpp.svs").write_bytes(real.replace(b"MPP = 0.4990", b"ABC = 0.4990"))
    ink, tissue = np.s_[200:1800, 200:2800], np.s_[2100:2500, 2100:2500]
    write_slide(folder / "a-marked.tiff", 3072, {INK: ink, TISSUE: tissue})
    write_slide(folder / "b-full.tiff", 1024, {TISSUE: np.s_[:, :]})
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, slides: Path, cohort: Path) -> Lake:
    """A lake with those, the real slide and the cohort."""
    lake = create_lake(tmp_path_factory.mktemp("lake") / "lake", CONFIG)
    return ingested(lake, [*sorted(slides.iterdir()), REAL_SLIDE, cohort])


@pytest.fixture(scope="module")
def page(shown: Lake) -> Page:
    return page_of(shown)


REAL = REAL_SLIDE.stem.lower()


def test_failures_come_first_then_doubts(page: Page, shown: Lake) -> None:
    assert list(page.kinds)[:4] == [EVIL, "cut-off", "a-marked", "b-full"]
    assert list(page.kinds.values())[:4] == ["failed", "failed", "mostly pen", "suspicious"]
    assert set(list(page.kinds.values())[4:]) == {"ok"}
    ready = shown.slides().filter(pl.col("verdict") == "ok").collect().sort("slide")
    assert list(page.kinds)[4:] == [name.lower() for name in ready["slide_id"]]
    assert "is cut off" in page.words["cut-off"]
    assert "not a slide format that openslide reads" in page.words[EVIL]
    assert not {EVIL, "cut-off"} & set(page.pictures)


def test_cards_say_what_the_lake_holds(page: Page, shown: Lake) -> None:
    for row in shown.tiles_of(mpp=0.5).iter_rows(named=True):
        with tarfile.open(shown.store.path(row["shard"])) as shard:
            stored = sum(name.endswith(".jpg") for name in shard.getnames())
        assert f"{stored:,} tiles at 0.5, " in page.words[row["slide_id"].lower()]
    for name in page.kinds:
        assert ("reckoned from the objective" in page.words[name]) == (name == "no-mpp")
    assert "2,220 × 2,967 px at 0.499 mpp" in page.words[REAL]  # noqa: RUF001
    assert "tiff reader" in page.words[REAL]
    assert "openslide reader; openslide, since" in page.words["a-marked"]


def test_totals(page: Page, shown: Lake) -> None:
    info = shown.info()
    words = page.words[""]
    assert f"Slides ready {info['slides']['ready']} of 4 patients" in words
    assert "Slides failed 2 the same command with --retry-failed takes them again" in words
    assert f"Tiles {sum(info['tiles'].values()):,} {info['tiles']['0.5']:,} at 0.5 mpp" in words
    assert "1 mostly pen, 1 suspicious" in words
    assert "Read by 8 tiff, 2 openslide" in words
    assert f"{sum(info['tiles'].values()):,} tiles encoded" in words
    assert "1 slide does not say its mpp" in words
    assert f"version{shown.version} format1" in words
    assert "Not shown" not in words


def test_pictures_show_the_slide(page: Page, shown: Lake) -> None:
    for row in shown.slides().filter(pl.col("state") == "ready").collect().iter_rows(named=True):
        with opened(page.pictures[row["slide_id"].lower()]) as picture:
            width, height = picture.size
        assert max(width, height) == 300
        assert width / height == pytest.approx(row["width_px"] / row["height_px"], rel=0.01)
    assert all("thumbnail" in text for text in page.alt)
    assert len(page.alt) == len(page.pictures)


def test_pen_is_tinted_and_tissue_is_not(page: Page, shown: Lake) -> None:
    with opened(page.pictures["a-marked"]) as picture:
        colours = np.asarray(picture.convert("RGB"), int)
    per_px = 3072 / 300
    ink, tissue = (np.array(GLASS) * 0 + colour for colour in (INK, TISSUE))
    # In the middles of tiles, where no line is.
    x, y = (np.arange(128 + 256 * 3, 256 * 6, 256) / per_px).astype(int), int(896 / per_px)
    assert np.abs(colours[y, x] - (0.45 * ink + 0.55 * np.array([255, 225, 0]))).max() < 25
    assert np.abs(colours[int(2176 / per_px), int(2432 / per_px)] - tissue).max() < 25
    with_pen = shown.tiles(mpp=0.5).filter(pl.col("pen") > 0.1).collect()
    assert set(with_pen["slide_id"]) == {"a-marked"}
    assert f"pen on {with_pen.height} kept tiles at 0.5" in page.words["a-marked"]


def test_the_page_loads_nothing_and_what_users_wrote_is_text(page: Page, shown: Lake) -> None:
    html = shown.read_bytes("ingest.html").decode()
    assert all(link.startswith("data:") for link in page.links)
    assert not {"iframe", "object", "embed"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not re.search(r"https?:|url\(|@import", html)
    assert EVIL not in html
    assert EVIL in page.words[EVIL]


@pytest.mark.parametrize("most", [1, 2, 6])
def test_what_is_left_out_is_told_and_can_be_listed(shown: Lake, most: int) -> None:
    page = page_of(shown, most=most)
    assert len(page.kinds) == most
    failed = sum(kind == "failed" for kind in page.kinds.values())
    assert failed == min(2, (most + 1) // 2)
    hidden = {"failed": 2 - failed, "mostly pen or suspicious": 2, "ready": 8}
    for kind in page.kinds.values():
        hidden["ready" if kind == "ok" else "mostly pen or suspicious"] -= kind != "failed"
    counts = re.findall(r"(\d+) more that (?:is|are) ([a-z ]+):", page.words[""])
    assert {kind: int(n) for n, kind in counts} == {kind: n for kind, n in hidden.items() if n}
    assert len(page.commands) == len(counts)
    for command in page.commands:
        _, _, uri, sql = shlex.split(command)
        assert uri == shown.uri
        assert query(shown, sql).height > 0


def test_copied_tiles_are_told(tmp_path: Path, cohort: Path) -> None:
    config = LakeConfig(mpps=(0.5,), passthrough=(0.5,), mix_codecs=True)
    slide = sorted((cohort.parent / "slides").glob("*.svs"))[0]
    lake = ingested(create_lake(tmp_path / "lake", config), [slide])
    page = page_of(lake)
    counts = lake.tiles(mpp=0.5).group_by("codec").len().collect()
    stored = dict(counts.iter_rows())["stored"]
    assert f"{stored} tiles copied as they are" in page.words[""]
    assert "copied" in page.words[slide.stem.lower()]


def test_an_empty_lake_and_one_whose_slides_wait(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", CONFIG)
    assert "There are none to show yet." in page_of(lake).words[""]
    lake.committer.register([{"slide_id": "s", "uri": "s.svs"}])
    page = page_of(lake.refreshed())
    assert page.kinds == {}
    assert "1 more wait to be cut" in page.words[""]
    assert "script" not in page.tags


def test_a_lake_of_an_earlier_version_in_its_format(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "data" / "format1.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    page = page_of(open_lake(tmp_path / "lake"))
    assert next(iter(page.kinds.items())) == ("bad", "failed")
    assert page.pictures == {}
    assert "6 tiles at 0.5" in page.words["a"]


def test_anywhere(any_store: Store) -> None:
    lake = create_lake(any_store.uri, CONFIG)
    lake = add_slides(lake, {"a": 3, "b": 2})
    uri = write_contact_sheet(lake)
    assert uri == any_store.url("ingest.html")
    assert list(Page(any_store.read_bytes("ingest.html").decode()).kinds) == ["a", "b"]
