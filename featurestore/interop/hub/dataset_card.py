"""The `README.md` of an exported cohort: a Hugging Face dataset card, a configuration a column."""

from collections.abc import Mapping
from typing import Any

import yaml

from featurestore.interop.hub import hub_layout as layout
from featurestore.licences import Licence, licence_from_json
from featurestore.messages import counted

OWN_WORDS = "<!-- What stands below this line is yours: an export keeps it. -->"
TEXT = """# Features of whole-slide images

{slides} in tiles of {tile_px} px, with these columns:

| column | µm/px | values per tile | licence of its encoder |
|---|---|---|---|
{rows}

- `data/<column>-mpp<mpp>/<slide>.parquet`: a row per tile with `slide_id`, `x`, `y` (level-0 pixels
  of its top-left corner) and `features` (float16). Tiles that the encoder left out have no row.
- `data/tiles-mpp<mpp>/<slide>.parquet`: all tiles, their cells and scores.
- `cards/<slide>.json`: the slide, and the size and SHA-256 of each of its files. `cohort.json`: the
  columns' encoders, and the SHA-256 of each card.
- `licences.json`: what each licence forbids, as far as it is known.

One column with plain Polars: `pl.read_parquet("data/<column>-mpp<mpp>/*.parquet")`. Into a lake,
where the numbers are the same to the bit: `slidelake import LAKE URL --format hub`.
"""
#: Licences by the names that the hub has for them.
LICENCES_OF_DATA = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC-BY-4.0": "cc-by-4.0"}


def dataset_card(index: Mapping[str, Any], *, earlier: str | None) -> str:
    """Return the text of `README.md`: YAML front matter, a table of columns, and how to read them.

    Args:
        index: contents of `cohort.json`.
        earlier: the present `README.md`; what a user wrote below the mark is kept.
    """
    front = yaml.safe_dump(_front_matter(index), sort_keys=False, allow_unicode=True)
    below = (earlier or "").partition(OWN_WORDS)[2] or "\n"
    return f"---\n{front}---\n\n{_text(index)}\n{OWN_WORDS}{below}"


def _columns(index: Mapping[str, Any]) -> list[tuple[str, float, Mapping[str, Any]]]:
    return [
        (name, float(mpp), column)
        for mpp, columns in sorted(index["columns"].items(), key=lambda entry: float(entry[0]))
        for name, column in sorted(columns.items())
    ]


def _front_matter(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the YAML: a licence of the hub's list only if all columns have it."""
    texts = {column["licence"]["text"] for _, _, column in _columns(index)}
    named = LICENCES_OF_DATA.get(next(iter(texts))) if len(texts) == 1 else None
    licence = (
        {"license": named}
        if named
        else {
            "license": "other",
            "license_name": "licences-of-its-columns",
            "license_link": "licences.json",
        }
    )
    folders = [
        layout.configuration(layout.TILES, float(mpp))
        for mpp in sorted(index["columns"], key=float)
    ]
    folders += [layout.configuration(name, mpp) for name, mpp, _ in _columns(index)]
    return {
        **licence,
        "pretty_name": "Features of whole-slide images",
        "tags": ["pathology", "whole-slide-images", "slidelake"],
        "configs": [
            {"config_name": folder, "data_files": f"{layout.DATA}/{folder}/*.parquet"}
            for folder in folders
        ],
    }


def _text(index: Mapping[str, Any]) -> str:
    rows = [
        f"| `{name}` | {mpp:g} | {column['dim']} | {_cell(str(_licence(column)))} |"
        for name, mpp, column in _columns(index)
    ]
    return TEXT.format(
        slides=counted(len(index["slides"]), "slide"),
        tile_px=index["lake"]["tile_px"],
        rows="\n".join(rows),
    )


def _licence(column: Mapping[str, Any]) -> Licence:
    return licence_from_json(column["licence"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
