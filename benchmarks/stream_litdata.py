"""litdata's loader on tiles of a folder, in an environment of its own; a child of `stream.py`.

    PYTHON stream_litdata.py FOLDER BATCH WORKERS

PYTHON is that of an environment with litdata, torch and simplejpeg; nothing of slidelake is
imported. FOLDER holds `tiles.bin` (JPEGs, one after the other) and `sizes.txt`. For each line on
standard input an epoch is read, and its seconds are printed.
"""

import sys
import time
from pathlib import Path

import numpy as np
import simplejpeg
from litdata import StreamingDataLoader, StreamingDataset, optimize


class Tiles(StreamingDataset):
    """A data set of JPEGs that simplejpeg decodes."""

    def __getitem__(self, index):  # noqa: ANN001, ANN204 - litdata is untyped
        """Return the pixels of a tile."""
        return simplejpeg.decode_jpeg(super().__getitem__(index)["jpeg"], colorspace="RGB")


def record(place):  # noqa: ANN001, ANN201 - it is sent to litdata's workers
    """Return the record of a tile: its stored JPEG."""
    folder, start, size = place
    with (Path(folder) / "tiles.bin").open("rb") as file:
        file.seek(start)
        return {"jpeg": file.read(size)}


def main() -> None:
    """Write litdata's chunks, then read an epoch for each line of standard input."""
    folder, batch, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sizes = np.loadtxt(folder / "sizes.txt", dtype=int)
    starts = np.cumsum(sizes) - sizes
    places = [(str(folder), int(a), int(n)) for a, n in zip(starts, sizes, strict=True)]
    chunks = str(folder / "chunks")
    optimize(record, places, chunks, chunk_bytes="64MB", num_workers=1, verbose=False)
    tiles = Tiles(chunks, shuffle=True)
    loader = StreamingDataLoader(
        tiles, batch_size=batch, num_workers=workers, persistent_workers=True
    )
    print("ready", flush=True)
    for _ in sys.stdin:
        start, count = time.perf_counter(), 0
        for pixels in loader:
            count += len(pixels)
        if count != len(sizes):
            raise RuntimeError(count)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
