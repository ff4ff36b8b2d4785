"""Draw the pictures of docs/concepts.md, three SVG files: `python docs/images/draw_concepts.py`.

Plain shapes and text, so that a browser can search them and a change is a readable difference.
Each has a background of its own, a dark one where the reader's system is dark.
"""

from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parent
STYLE = """
  svg { font-family: system-ui, sans-serif; font-size: 13px; }
  .ground { fill: #ffffff; } .ink { fill: #1c2733; } .soft { fill: #55636f; }
  .line { stroke: #55636f; fill: none; } .box { fill: #f0f4f7; stroke: #55636f; }
  .blue { fill: #a9cdec; stroke: #2f6ea5; } .gold { fill: #f4dca0; stroke: #94700e; }
  .rose { fill: #f2c3cf; stroke: #a8415a; } .thin { stroke-width: 0.6; }
  .mono { font-family: ui-monospace, monospace; font-size: 12px; } .bold { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #14191f; } .ink { fill: #e8edf2; } .soft { fill: #a3b1bd; }
    .line { stroke: #a3b1bd; } .box { fill: #202932; stroke: #a3b1bd; }
    .blue { fill: #1f4a70; stroke: #79b4e2; } .gold { fill: #5d4a12; stroke: #e0bd5c; }
    .rose { fill: #66293a; stroke: #e58aa0; }
  }
"""


class Drawing:
    """The shapes of one SVG file, in the order in which they are painted."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
            ' role="img" aria-labelledby="title description">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            f"<style>{STYLE}</style>",
            '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" ',
            'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8" class="line"/></marker>',
        ]
        self.box(0, 0, width, height, "ground")

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box") -> None:
        """Draw a rectangle."""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.lines.append(f'<rect {place} rx="3" class="{kind}"/>')

    def text(
        self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start"
    ) -> None:
        """Write a line of text whose baseline is at y."""
        place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        self.lines.append(f'<text {place} class="{kind}">{escape(words)}</text>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Draw a straight arrow."""
        self.lines.append(
            f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g}" class="line" marker-end="url(#tip)"/>'
        )

    def svg(self) -> str:
        """Return the whole file."""
        return "\n".join([*self.lines, "</svg>", ""])


def lake() -> str:
    """Return the drawing of a lake: its tables, what a row of each is, and its versions."""
    drawing = Drawing(
        800, 430, "A lake",
        "Three tables and the tar files of tiles. slides.lance has a row for each slide, "
        "catalog.lance a row for each slide and mpp that names its rows and its tar file, "
        "features/mpp0.5.lance a row for each tile and a column for each teacher. Below, a line of "
        "versions: ingest made version 4, extract of two teachers 6 and 8, a snapshot names 6.",
    )  # fmt: skip
    drawing.text(20, 30, "slides.lance", "ink bold")
    drawing.text(20, 48, "a row per slide: state, size, mpp, why it failed", "soft")
    for row, name in enumerate(("P000-1", "P001-1", "P002-1")):
        drawing.box(20, 58 + 24 * row, 150, 22, "blue" if row == 0 else "box")
        drawing.text(28, 73 + 24 * row, name, "ink mono")
    drawing.text(20, 165, "catalog.lance", "ink bold")
    drawing.text(20, 183, "a row per slide and mpp", "soft")
    for row, words in enumerate(
        ("P000-1  0.5  rows 0-4", "P001-1  0.5  rows 5-7", "P002-1  0.5  rows 8-9")
    ):
        drawing.box(20, 193 + 24 * row, 210, 22, "blue" if row == 0 else "box")
        drawing.text(28, 208 + 24 * row, words, "ink mono")
    drawing.arrow(95, 134, 95, 150)
    drawing.text(360, 30, "features/mpp0.5.lance", "ink bold")
    drawing.text(360, 48, "a row per tile, one wide table per mpp; a column per teacher", "soft")
    for at, (name, x, width) in enumerate(
        (
            ("slide, y, x", 360, 90),
            ("tissue", 452, 60),
            ("uni2_h", 514, 70),
            ("virchow2", 586, 70),
            ("student", 658, 70),
        )
    ):
        drawing.box(x, 58, width, 22, "box" if at < 2 else "gold")
        drawing.text(x + width / 2, 73, name, "ink mono", "middle")
        for row in range(10):
            of_slide = "blue" if row < 5 else "box"
            drawing.box(x, 82 + 14 * row, width, 13, f"{of_slide} thin")
    drawing.arrow(232, 203, 354, 118)
    drawing.text(360, 240, "a bag: all tiles of a slide are neighbouring rows, one read", "soft")
    drawing.text(360, 268, "tiles/mpp0.5/*.tar", "ink bold")
    drawing.text(360, 286, "the pixels: a tar per slide and mpp, <tile_id>.jpg in it", "soft")
    drawing.arrow(232, 215, 354, 262)
    drawing.text(20, 330, "versions", "ink bold")
    drawing.text(
        90, 330, "every commit makes one; a reader opens one and sees nothing else", "soft"
    )
    drawing.lines.append('<path d="M30 372 L770 372" class="line"/>')
    for x, number, words in (
        (80, "4", "ingest"),
        (270, "6", "extract uni2_h"),
        (460, "8", "extract virchow2"),
        (650, "13", "student"),
    ):
        drawing.lines.append(f'<circle cx="{x}" cy="372" r="12" class="gold"/>')
        drawing.text(x, 376, number, "ink", "middle")
        drawing.text(x, 402, words, "soft", "middle")
    drawing.text(270, 352, "snapshot paper-v1", "ink mono", "middle")
    return drawing.svg()


def grid() -> str:
    """Return the drawing of nested grids: one tile of 2.0 mpp over sixteen of 0.5 mpp."""
    drawing = Drawing(
        800, 360, "Nested grids",
        "Both grids begin at the top left corner of the slide. A tile of 2.0 mpp covers exactly "
        "four by four tiles of 0.5 mpp. Tiles with tissue are kept, the others are not stored. "
        "x and y of a tile are the level-0 pixels of its top left corner.",
    )  # fmt: skip
    drawing.text(20, 30, "level 0 of a slide, 0.5 mpp", "ink bold")
    drawing.text(20, 50, "(0, 0)", "soft mono")
    side, left, top = 32, 30, 60
    kept = {
        (1, 2),
        (1, 3),
        (2, 1),
        (2, 2),
        (2, 3),
        (3, 2),
        (3, 3),
        (3, 4),
        (2, 4),
        (4, 3),
        (4, 4),
        (5, 4),
    }
    for y in range(8):
        for x in range(8):
            kind = "rose" if (y, x) in kept else "box"
            drawing.box(left + side * x, top + side * y, side - 1, side - 1, f"{kind} thin")
    for y in range(2):
        for x in range(2):
            drawing.lines.append(
                f'<rect x="{left + 128 * x}" y="{top + 128 * y}" width="127" height="127" '
                'class="line" stroke-width="3"/>'
            )
    drawing.arrow(left + 3.5 * side, top + 0.5 * side, 390, 80)
    drawing.text(396, 84, "a tile of 2.0 mpp, 256 x 256 px", "ink bold")
    drawing.text(396, 102, "grid_y 0, grid_x 0;  y 0, x 0", "ink mono")
    drawing.text(396, 119, "exactly 4 x 4 tiles of 0.5 mpp: 1,024 level-0 pixels", "soft")
    drawing.arrow(left + 2.5 * side, top + 1.5 * side, 390, 156)
    drawing.text(396, 160, "a tile of 0.5 mpp, 256 x 256 px too", "ink bold")
    drawing.text(396, 178, "grid_y 1, grid_x 2;  y 256, x 512", "ink mono")
    drawing.text(396, 195, "y, x: its top left corner in level-0 pixels", "soft")
    drawing.text(396, 212, "its wide view is a division (1 // 4, 2 // 4), no search", "soft")
    drawing.box(396, 236, 22, 22, "rose")
    drawing.text(426, 252, "kept: at least a tenth is tissue (--tissue-min)", "ink")
    drawing.box(396, 266, 22, 22)
    drawing.text(426, 282, "background: no row, no pixels stored", "ink")
    drawing.text(
        20,
        342,
        "tile_id holds slide number, mpp, grid_y and grid_x in 63 bits: a tile has one key, always",
        "soft",
    )
    return drawing.svg()


def run() -> str:
    """Return the drawing of a run: what it reads, its folds, what it leaves."""
    drawing = Drawing(
        800, 380, "A run",
        "A run reads one version of the lake and a table of labels, which meet by slide or "
        "patient. Patients are split in five folds: each is tested once, some of the others are "
        "validation patients, the rest training patients. The folder runs/mil-... holds settings, "
        "splits, predictions, the result and a page.",
    )  # fmt: skip
    drawing.text(20, 30, "what it reads", "ink bold")
    drawing.box(20, 42, 170, 62, "gold")
    drawing.text(30, 64, "lake, version 18", "ink")
    drawing.text(30, 84, "bags of one teacher", "soft")
    drawing.box(20, 122, 170, 62, "blue")
    drawing.text(30, 144, "labels.csv", "ink mono")
    drawing.text(30, 164, "patient, slide, grade", "soft")
    drawing.text(20, 212, "they meet by slide or patient;", "soft")
    drawing.text(20, 229, "who is on one side only is listed", "soft")
    drawing.arrow(192, 73, 234, 100)
    drawing.arrow(192, 153, 234, 130)
    drawing.text(240, 30, "folds of patients", "ink bold")
    for fold in range(5):
        drawing.text(240, 60 + 30 * fold, f"fold {fold + 1}", "soft")
        for part in range(10):
            kind = "rose" if part // 2 == fold else "gold" if part // 2 == (fold + 1) % 5 else "box"
            drawing.box(290 + 20 * part, 45 + 30 * fold, 18, 20, kind)
    for at, (kind, words) in enumerate(
        (
            ("box", "training: fits models and statistics"),
            ("gold", "validation: decides when to stop"),
            ("rose", "test: scored once, decides nothing"),
        )
    ):
        drawing.box(290, 212 + 26 * at, 18, 18, kind)
        drawing.text(316, 226 + 26 * at, words, "ink")
    drawing.arrow(496, 115, 534, 115)
    drawing.text(540, 30, "runs/mil-3f0a1b2c4d5e/", "ink bold")
    for at, (name, words) in enumerate(
        (
            ("config.json", "all settings"),
            ("splits.parquet", "who was where"),
            ("predictions.parquet", "every prediction"),
            ("result.json", "measures, intervals"),
            ("report.html", "the page"),
        )
    ):
        drawing.text(540, 58 + 30 * at, name, "ink mono")
        drawing.text(540, 73 + 30 * at, words, "soft")
    drawing.text(
        20,
        320,
        "The name is a hash of all that decides the result: the same question finds its answer,",
        "soft",
    )
    drawing.text(
        20,
        338,
        "a killed run goes on with the folds that are missing, vacuum keeps the version it read.",
        "soft",
    )
    return drawing.svg()


#: Name of the file -> the function that draws it.
DRAWINGS: dict[str, Callable[[], str]] = {
    "concept_lake.svg": lake,
    "concept_grid.svg": grid,
    "concept_run.svg": run,
}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (FOLDER / name).write_text(draw())
