"""The operations of each card's network for one tile, which `slidelake estimate` goes by.

    python -m benchmarks.encoder_flops

Networks are built without weights (on torch's meta device) and counted by torch's own counter: a
multiplication and an addition are two operations. It prints the table `gflops` of
`ingest/estimate/rates.toml`.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from ingest import CARDS
from ingest.teachers.networks import build


def gflops(name: str) -> float:
    """Return the billions of operations of a card's network for one tile.

    >>> 1.5 < gflops("resnet50") / 4.1 < 2.5
    True
    """
    card = CARDS[name]
    with torch.device("meta"):
        network = build(card.architecture, card.input_px, card.arguments).eval()
        tile_BCHW = torch.zeros(1, 3, card.input_px, card.input_px)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.forward_features(tile_BCHW)  # type: ignore[operator]
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    for card_name in sorted(CARDS):
        print(f"{card_name} = {gflops(card_name):.1f}")
