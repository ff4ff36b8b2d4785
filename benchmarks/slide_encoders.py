"""Memory and time of slide encoders on large slides: full width, random weights.

Run: python -m benchmarks.slide_encoders [--tiles 60000] [--depth 1] [--device cpu] [--out FILE]

Each encoder runs in a process of its own, whose greatest memory is measured: resident memory on a
CPU, allocated memory on a GPU. Layers run one after the other in the same memory, so that the depth
changes the time and not the memory (--depth 6 is TITAN's, 12 GigaPath's). The clock has the network
alone: no reading of features, no weights' file.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ENCODERS = ("titan", "gigapath_slide")


def measure(name: str, tiles: int, depth: int, device: str) -> dict[str, object]:
    """Return the time and the greatest memory of one encoder, in this process."""
    import torch

    from ingest.slide_encoders import SLIDE_ENCODERS
    from ingest.slide_encoders.networks.gigapath import GigaPathSlide
    from ingest.slide_encoders.networks.titan import Titan

    card = SLIDE_ENCODERS[name]
    arguments = {**card.arguments, "depth": depth}
    torch.manual_seed(0)
    network: torch.nn.Module
    if name == "titan":
        network = Titan(**arguments)
    else:
        network = GigaPathSlide(**{**arguments, "layer": depth})
    network = network.eval().to(device)
    side = 2 * int(tiles**0.5)
    cells = torch.randperm(side * side)[:tiles]
    places = torch.stack([cells % side, cells // side], dim=1).to(device)
    x_ND = torch.randn(tiles, card.input_dim or 0, device=device)
    begun = time.perf_counter()
    with torch.inference_mode():
        finite = bool(network(x_ND, places).isfinite().all())
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {
        "encoder": name,
        "tiles": tiles,
        "depth": depth,
        "device": device,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak / 2**30, 2),
        "finite": finite,
    }


def main() -> None:
    """Measure each encoder in a process of its own, print and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=60_000)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--encoder", choices=ENCODERS, help="measure this one, in this process")
    options = parser.parse_args()
    if options.encoder:
        result = measure(options.encoder, options.tiles, options.depth, options.device)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    results = []
    for name in ENCODERS:
        words = [sys.executable, "-m", "benchmarks.slide_encoders", "--encoder", name]
        words += ["--tiles", str(options.tiles), "--depth", str(options.depth)]
        done = subprocess.run(
            [*words, "--device", options.device], check=True, capture_output=True, text=True
        )
        results.append(json.loads(done.stdout.strip().splitlines()[-1]))
        sys.stdout.write(f"{results[-1]}\n")
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
