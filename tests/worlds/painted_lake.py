"""A lake of small painted slides, whose tiles have known colours, and how a page is read."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from featurestore import (
    GridCut,
    Lake,
    LakeConfig,
    ShardWriter,
    SlideCut,
    create_lake,
    mpp_name,
    tile_ids,
    tiles_table,
)

Json = dict[str, Any]

ACROSS, DOWN, SIDE_PX = 6, 4, 256
WIDTH_PX, HEIGHT_PX = ACROSS * SIDE_PX + 100, DOWN * SIDE_PX + 60


class Page(HTMLParser):
    """Tags, what they load or lead to, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.text = ""
        self.script = ""
        self.policy = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " " if tag in {"td", "th", "dd", "span", "li"} else ""
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = str(dict(attrs)["content"])
        for name, value in attrs:
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "action", "data", "poster"}:
                self.links.append((tag, value or ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.script += data
        else:
            self.text += data

    @property
    def images(self) -> list[str]:
        return [link for tag, link in self.links if tag == "img"]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def loads_nothing(self) -> bool:
        """Whether nothing is fetched, and no script runs but the one that sorts tables.

        Its hash is in the page's policy, which forbids all others.
        """
        inside = all(
            link.startswith(("data:", "#")) or (tag == "a" and re.fullmatch(r"[\w.-]+", link))
            for tag, link in self.links
        )
        digest = base64.b64encode(hashlib.sha256(self.script.encode()).digest()).decode()
        is_ours = not self.script or f"script-src 'sha256-{digest}';" in self.policy
        return inside and is_ours and not {"iframe", "object", "embed", "form"} & set(self.tags)


def slide_names(patients: int) -> list[str]:
    """Patient p01 has two slides, the others have one."""
    return [f"s{n:02d}{part}" for n in range(patients) for part in ("ab" if n == 1 else "a")]


def painted_lake(
    path: Path, *, patients: int = 24, mpps: tuple[float, ...] = (0.5,), thumbnail: bool = True
) -> Lake:
    """A lake whose tiles are JPEGs of one colour each, redder to the right, bluer downwards."""
    lake = create_lake(path, LakeConfig(tile_px=256, mpps=mpps))
    rows = lake.committer.register(
        [
            {"slide_id": name, "patient_id": f"p{name[1:3]}", "uri": f"{name}.svs"}
            for name in slide_names(patients)
        ]
    )
    lake.committer.commit_slides([_cut(lake, row, thumbnail=thumbnail) for row in rows])
    return lake.refreshed()


def _cut(lake: Lake, row: Json, *, thumbnail: bool) -> SlideCut:
    described = {**row, "width_px": WIDTH_PX, "height_px": HEIGHT_PX, "mpp": 0.5}
    if thumbnail:
        picture = np.full((HEIGHT_PX // 8, WIDTH_PX // 8, 3), 235, np.uint8)
        cv2.circle(picture, (60, 60), 40, (150, 90, 190), -1)
        described["thumbnail"] = cv2.imencode(".jpg", picture)[1].tobytes()
    return SlideCut(row=described, grids={mpp: _grid(lake, row, mpp) for mpp in lake.config.mpps})


def _grid(lake: Lake, row: Json, mpp: float) -> GridCut:
    times = round(mpp / lake.config.mpps[0])
    y, x = (part.ravel() for part in np.mgrid[0 : DOWN // times, 0 : ACROSS // times])
    ids = tile_ids(row["slide"], mpp, y, x)
    with ShardWriter(lake.store, f"tiles/mpp{mpp_name(mpp)}/{row['slide']:06d}-0.tar") as shard:
        for key, down, right in zip(ids.tolist(), y, x, strict=True):
            shard.add(key, _tile(int(right) * times, int(down) * times), {})
    assert shard.shard is not None
    columns = {
        "tile_id": ids,
        "slide": np.full(len(ids), row["slide"]),
        "slide_id": [row["slide_id"]] * len(ids),
        "grid_y": y,
        "grid_x": x,
        "y": y * SIDE_PX * times,
        "x": x * SIDE_PX * times,
        "tissue": np.ones(len(ids)),
    }
    return GridCut(
        tiles=tiles_table(mpp, 256, columns),
        shard=shard.shard,
        effective_mpp=mpp,
        tile_px_level0=SIDE_PX * times,
        grid_px_level0=SIDE_PX * times,
        grid_width=ACROSS // times,
        grid_height=DOWN // times,
    )


def _tile(right: int, down: int) -> bytes:
    bgr = (90 + 40 * down, 60, 30 + 40 * right)
    return cv2.imencode(".jpg", np.full((256, 256, 3), bgr, np.uint8))[1].tobytes()
