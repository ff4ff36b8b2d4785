"""Students for tests, trained by a few lines of plain torch and kept as the loop keeps its own."""

import time
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from featurestore import Lake, holdout_patients, patient_of
from ingest.teachers.cards.card import Card, card_json
from ingest.teachers.encoder import preprocess, resized
from ingest.teachers.networks import build

ARCHITECTURE, INPUT_PX = "test_efficientnet", 64
BATCH, RATE = 16, 3e-3
GREY = (0.5, 0.5, 0.5)


def held_out(lake: Lake, seed: int = 0) -> list[str]:
    """Slides of a quarter of the patients."""
    slides = patient_of(lake.slides().collect()).sort("slide_id")
    held = holdout_patients(slides, share=0.25, seed=seed)
    return slides.filter(slides["patient"].is_in(sorted(held)))["slide_id"].to_list()


def write_student(
    lake: Lake,
    name: str,
    teachers: tuple[str, ...],
    *,
    seed: int = 0,
    split: int = 0,
    epochs: int = 4,
    cosine: float = 0.6,
    **recipe: Any,  # noqa: ANN401 - what its recipe has beside
) -> None:
    """Train a student and write its folder.

    Args:
        lake: where its teachers' features are.
        name: of it.
        teachers: of the features that it predicts, each centred and of one overall scale.
        seed: of its weights and the order of tiles.
        split: seed of the held-out patients.
        epochs: passes over the tiles; 0 leaves it as it was made.
        cosine: fidelity to each teacher in its report.
        **recipe: what its recipe has beside.
    """
    torch.manual_seed(seed)
    held = held_out(lake, split)
    slides = sorted(set(lake.slides().collect()["slide_id"]) - set(held))
    dims = [lake.teachers(mpp=0.5)[teacher] for teacher in teachers]
    trunk: Any = build(ARCHITECTURE, INPUT_PX)
    model = nn.Sequential(trunk, nn.Linear(trunk.num_features, sum(dims)))
    start, steps = time.perf_counter(), 0
    if epochs:
        steps = _train(lake, model, teachers, slides, epochs, seed)
    card = Card(
        name=name,
        architecture=ARCHITECTURE,
        dim=trunk.num_features,
        input_px=INPUT_PX,
        mean=GREY,
        std=GREY,
    )
    recipe = {"name": "test", "teachers": list(teachers), "mpps": [], "seed": seed, **recipe}
    report: dict[str, Any] = {
        "student": name,
        "recipe": {**recipe, "epochs": epochs, "batch_tiles": BATCH},
        "run": f"distill-test-{name}",
        "held_out_slides": held,
        "lake_version": lake.version,
        "steps": steps,
        "train_seconds": round(time.perf_counter() - start, 3),
        "fidelity": {t: {"cosine": cosine, "baseline": 0.5, "tiles": 1} for t in teachers},
    }
    tensors = {key: value.contiguous() for key, value in trunk.state_dict().items()}
    lake.write_bytes(f"students/{name}/model.safetensors", save(tensors))
    lake.write_bytes(f"students/{name}/card.json", card_json(card))
    lake.write_json(f"students/{name}/report.json", report)


def _train(
    lake: Lake,
    model: nn.Module,
    teachers: tuple[str, ...],
    slides: list[str],
    epochs: int,
    seed: int,
) -> int:
    """Squared error to all features side by side, at every mpp; the steps that were done."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    streams = [
        lake.stream(
            teachers,
            mpp=mpp,
            slide_ids=slides,
            pixels="uint8",
            batch_tiles=BATCH,
            block_tiles=2,
            buffer_tiles=256,
            seed=seed,
        )
        for mpp in lake.config.mpps
    ]
    steps = 0
    for _ in range(epochs):
        for batch in (batch for stream in streams for batch in stream):
            if batch.pixels is None or len(batch.tile_id) < 2:
                continue
            x_BCHW = preprocess(resized(batch.pixels, INPUT_PX, "bicubic"), GREY, GREY)
            y_BD = torch.cat([torch.from_numpy(batch.features[t]).float() for t in teachers], 1)
            loss = (model(x_BCHW) - y_BD).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
    return steps
