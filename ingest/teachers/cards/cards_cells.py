"""Cards of encoders of single blood cells: DinoBloom and RedDino."""

from collections.abc import Iterator

from ingest.teachers.cards.card import Card
from ingest.teachers.cards.cards_natural import IMAGENET, SAFETENSORS
from ingest.teachers.cards.cards_recent import STAMP

SIZES = (("s", "small", 384), ("b", "base", 768), ("l", "large", 1024), ("g", "giant", 1536))


def _dinobloom(letter: str, size: str, dim: int) -> Card:
    return Card(
        name=f"dinobloom_{letter}",
        architecture=f"vit_{size}_patch14_dinov2",
        dim=dim,
        input_px=224,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        poolings=("cls",),
        prefix_tokens=1,
        patch_px=14,
        licence="Apache-2.0, that of its code; the weights' page is unread",
        source=f"Helmholtz Munich, DinoBloom-{letter.upper()}.pth, github.com/marrlab/DinoBloom",
        files=(f"DinoBloom-{letter.upper()}.pth",),
        keys="gpfm",
        references={
            "network, names, mean, std": f"{STAMP}/dinobloom.py, loads DinoBloom-S strictly",
            "lengths, files": "marrlab/DinoBloom@01532b6, README.md",
        },
        unverified=("interpolation: STAMP resizes nothing", "licence of the weights", "precision"),
    )


def _reddino(size: str, dim: int) -> Card:
    return Card(
        name=f"reddino_{size}",
        architecture=f"vit_{size}_patch14_dinov2",
        dim=dim,
        input_px=224,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        interpolation="bilinear",
        poolings=("cls",),
        prefix_tokens=1,
        patch_px=14,
        licence="unread",
        source="red blood cells, github.com/Snarci/RedDino",
        hub=f"Snarcy/RedDino-{size}",
        files=SAFETENSORS,
        keys="dinov2",
        references={
            "mean, std, interpolation, pooling": f"{STAMP}/reddino.py",
            "network": "a DINOv2: Snarci/RedDino@0d07434, README.md",
        },
        unverified=(
            "network: in the hub's config, unread; other weights are refused", "licence",
            "precision", "name of the file",
        ),
    )  # fmt: skip


def cells() -> Iterator[Card]:
    """Yield the cards of encoders of blood cells."""
    for letter, size, dim in SIZES:
        yield _dinobloom(letter, size, dim)
    yield from (_reddino("base", 768), _reddino("large", 1024))
