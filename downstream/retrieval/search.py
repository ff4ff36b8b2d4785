"""Search by example: the nearest tiles to a tile, and the nearest slides to a slide.

Nearness is the cosine of one teacher's features; a slide has the mean of its tiles. The query
itself is never a result, and results of its own patient are marked or left out: tiles of
one slide are near to each other for its stain and scanner alone.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from downstream.retrieval.recall import RECALL_BYTES, RECALL_TILES, measure_recall
from downstream.retrieval.search_options import SearchOptions
from downstream.retrieval.search_page import check_out, write_picture
from downstream.retrieval.search_query import (
    RetrievalError,
    check_k,
    find_query,
    nearest_rows,
    pooled_features,
)
from downstream.run.feature_bags import is_of_slides, slides_with_features, slides_with_tiles

if TYPE_CHECKING:
    from downstream.retrieval.search_query import Query
    from featurestore import IndexState, Lake

Json = dict[str, Any]


def search_lake(lake_uri: str, options: SearchOptions, *, out: Path | None = None) -> Json:
    """Return the tiles nearest to a tile, or the slides nearest to a slide.

    Args:
        lake_uri: the lake.
        options: the query and the settings of the search.
        out: path of a picture to write, as .png or .html.

    Returns:
        like (slide_id, patient, and of a tile x, y, tile_id), features, mpp, k, search ("exact" or
        "index"), index (kind, indexed, tiles; None without one), recall (k, tiles, mean, worst;
        None if it was not measured), results (rank, slide_id, patient, similarity, same_patient,
        and of tiles x, y, tile_id, same_slide), seconds, lake_version, picture.

    Raises:
        LakeError: There is no such lake or teacher, or the index can't be built.
        RetrievalError: The slide is unknown, no tile covers the place, or a number is not allowed.
    """
    from featurestore import ResultDict, open_lake

    check_k(options.k)
    if out is not None:
        check_out(out)
    lake = open_lake(lake_uri, version=options.version)
    query = find_query(lake, options.like, options.features, mpp=options.mpp)
    if options.build_index and is_of_slides(options.features):
        msg = f"'{options.features}' has vectors of slides, which are compared without an index"
        raise RetrievalError(msg)
    if options.build_index:
        lake = _with_index(lake, query, options.version)
    begun = time.monotonic()
    neighbours = _neighbours(
        lake, query, k=options.k, exact=options.exact, others_only=options.other_patients_only
    )
    seconds = time.monotonic() - begun
    index = None if options.exact or query.tile_id is None else _index_of(lake, query)
    answer: Json = {
        "like": query.description(),
        "features": options.features,
        "mpp": query.mpp,
        "k": options.k,
        "search": "exact" if index is None else "index",
        "index": index and {"kind": index.kind, "indexed": index.indexed, "tiles": index.tiles},
        "recall": index and _recall(lake, query, index, options.k, options.recall_tiles),
        "results": neighbours.to_dicts(),
        "seconds": round(seconds, 3),
        "lake_version": lake.version,
        "picture": None,
    }
    if out is not None:
        answer["picture"] = str(write_picture(lake, answer, out))
    return ResultDict(answer, name="search", uri=lake.uri)


# With many parameters: the public function names every setting that users change.
def run_search(
    lake_uri: str,
    like: str,
    features: str,
    *,
    mpp: float = 0.5,
    k: int = 12,
    exact: bool = False,
    build: bool = False,
    other_patients_only: bool = False,
    recall_tiles: int | None = None,
    out: Path | None = None,
    version: int | str | None = None,
) -> Json:
    """Return the nearest tiles or slides: `search_lake` by single settings.

    Args:
        lake_uri: the lake.
        like: see `SearchOptions.like`.
        features: see `SearchOptions.features`.
        mpp: see `SearchOptions.mpp`.
        k: see `SearchOptions.k`.
        exact: see `SearchOptions.exact`.
        build: see `SearchOptions.build_index`.
        other_patients_only: see `SearchOptions.other_patients_only`.
        recall_tiles: see `SearchOptions.recall_tiles`.
        out: path of a picture to write, as .png or .html.
        version: see `SearchOptions.version`.

    Returns:
        See `search_lake`.

    Raises:
        ValueError: See `search_lake`.

    Examples:
        >>> answer = sl.run_search("my-lake", "s01a:256,0", "student", k=2,
        ...                        other_patients_only=True)
        >>> [(hit["slide_id"], hit["x"], hit["y"]) for hit in answer["results"]]
        [('s06a', 512, 768), ('s08a', 256, 768)]
    """
    options = SearchOptions(
        like=like,
        features=features,
        mpp=mpp,
        k=k,
        exact=exact,
        build_index=build,
        other_patients_only=other_patients_only,
        recall_tiles=recall_tiles,
        version=version,
    )
    return search_lake(lake_uri, options, out=out)


def _with_index(lake: "Lake", query: "Query", version: int | str | None) -> "Lake":
    """Return the lake at its newest version, with an index of the query's features."""
    from featurestore import build_index

    if version is not None:
        msg = f"an index is built of the newest version; leave out version {version}"
        raise RetrievalError(msg)
    build_index(lake, query.features, mpp=query.mpp)
    return lake.refreshed()


def _index_of(lake: "Lake", query: "Query") -> "IndexState | None":
    """Return the state of the index of the query's features, or None without one."""
    from featurestore import index_state

    state = index_state(lake, query.features, mpp=query.mpp)
    return state if state.indexed else None


def _recall(
    lake: "Lake", query: "Query", index: "IndexState", k: int, tiles: int | None
) -> Json | None:
    """Return the recall of the index, or None if it is not measured."""
    if tiles is None:
        width = lake.teachers(mpp=query.mpp)[query.features]
        tiles = RECALL_TILES if index.tiles * width * 2 <= RECALL_BYTES else 0
    return measure_recall(lake, query.features, mpp=query.mpp, k=k, tiles=tiles) if tiles else None


def _neighbours(
    lake: "Lake", query: "Query", *, k: int, exact: bool, others_only: bool
) -> pl.DataFrame:
    """Return the nearest tiles or slides, with rank, patient and `same_patient`."""
    own = query.patients.filter(pl.col("patient") == query.patient)["slide_id"].to_list()
    without = own if others_only else []
    if query.tile_id is None:
        nearest = nearest_slides(lake, query, k=k, without=without)
    else:
        nearest = nearest_tiles(lake, query, k=k, exact=exact, without=without)
    named = nearest.join(query.patients, on="slide_id", how="left", maintain_order="left")
    return named.with_columns(same_patient=pl.col("patient") == query.patient).with_row_index(
        "rank", offset=1
    )


def nearest_tiles(
    lake: "Lake", query: "Query", *, k: int, exact: bool = False, without: list[str] | None = None
) -> pl.DataFrame:
    """Return the k nearest tiles to a tile, without the tile itself.

    Returns:
        Columns slide_id, tile_id, x, y (level-0 pixels of the top-left corner), similarity (cosine,
        higher is nearer), same_slide; nearest first.
    """
    nearest = lake.nearest(
        query.vector, query.features, mpp=query.mpp, k=k + 1, without=without or [], exact=exact
    )
    others = nearest.filter(pl.col("tile_id") != query.tile_id).head(k)
    return others.select(
        "slide_id",
        "tile_id",
        "x",
        "y",
        similarity=1 - pl.col("distance").cast(pl.Float64),
        same_slide=pl.col("slide_id") == query.slide_id,
    )


def nearest_slides(
    lake: "Lake", query: "Query", *, k: int, without: list[str] | None = None
) -> pl.DataFrame:
    """Return the k nearest slides to a slide, by the mean of their tiles' features.

    Returns:
        Columns slide_id, similarity (cosine, higher is nearer); nearest first, ties by slide_id.
    """
    left_out = {query.slide_id, *(without or [])}
    usable = slides_with_tiles(lake, mpp=query.mpp)
    usable &= slides_with_features(lake, query.features, mpp=query.mpp)
    names = sorted(usable - left_out)
    names, pooled_SD = pooled_features(lake, names, query.features, mpp=query.mpp)
    row, similarity = nearest_rows(query.vector, pooled_SD, k)
    return pl.DataFrame(
        {"slide_id": [names[at] for at in row], "similarity": similarity},
        schema={"slide_id": pl.String, "similarity": pl.Float64},
    )


def found_text(answer: Json) -> str:
    """Return the answer of a search as text: a line for each result, then how it was searched."""
    lines = [_result_line(row) for row in answer["results"]]
    return "\n".join([*(lines or ["nothing else has these features"]), _search_summary(answer)])


def _result_line(row: Json) -> str:
    """Return one search result as a line of text."""
    place = f":{row['x']},{row['y']}" if "tile_id" in row else ""
    own = "  (the query's slide)" if row.get("same_slide") else ""
    own = own or ("  (the query's patient)" if row["same_patient"] else "")
    return f"{row['rank']:>3}  {row['similarity']:.4f}  {row['slide_id']}{place}{own}"


def _search_summary(answer: Json) -> str:
    """Return a sentence on how the search was done, and how long it took."""
    index, recall = answer["index"], answer["recall"]
    text = "compared with all others"
    if index:
        text = f"by index, which covers {index['indexed']:,} of {index['tiles']:,} tiles"
    if index and recall and recall["tiles"]:
        text += (
            f"; recall@{recall['k']} is {recall['mean']:.3f} over {recall['tiles']} random tiles"
        )
    elif index:
        text += "; recall was not measured (--recall-tiles 16 does)"
    picture = f"; {answer['picture']}" if answer["picture"] else ""
    return f"{text}; {answer['seconds']:.2f} s{picture}"
