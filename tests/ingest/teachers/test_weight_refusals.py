"""What does not hold the weights of a network is refused, whatever is wrong with it."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ingest.errors import TeacherError
from ingest.teachers.cards.card_table import CARDS
from ingest.teachers.networks import build
from ingest.teachers.weights.weight_keys import load_weights, read_weights
from ingest.teachers.weights.weights_files import find_weights
from tests.worlds.tiny_networks import loaded, network, randomised, saved, small


def test_a_classifier_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    card = small("vit_small_augreg")
    file = randomised(network(card))
    head = {"head.weight": torch.zeros(21843, 48), "head.bias": torch.zeros(21843)}
    model = loaded(card, saved(tmp_path / "model.safetensors", {**file, **head}))
    assert torch.equal(model.state_dict()["norm.weight"], file["norm.weight"])
    more = saved(tmp_path / "more.safetensors", {**file, "head_dist.bias": torch.zeros(1)})
    with pytest.raises(TeacherError, match=r"1 of \d+ tensors differ, first head_dist.bias"):
        loaded(card, more)


@pytest.mark.parametrize("name", sorted({card.keys: name for name, card in CARDS.items()}.values()))
def test_files_of_other_networks_are_refused(tmp_path: Path, name: str) -> None:
    """Every kind of names refuses those of a stranger, and no tensors at all."""
    stranger = timm.create_model("test_vit", num_classes=0).state_dict()
    card = CARDS[name]
    with torch.device("meta"):
        model = build(card.architecture, card.input_px, card.arguments)
    for file in (stranger, {"epoch": 3}):
        path = saved(tmp_path / "weights.pth", file)
        message = rf"weights.pth does not hold the weights of {card.architecture} \(\d+ of \d+"
        with pytest.raises(TeacherError, match=message + " tensors differ, first"):
            load_weights(model, path, card)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    card = small("uni")
    file = randomised(network(card))
    path = tmp_path / "weights.pth"
    total = len(file)
    missing = {n: t for n, t in file.items() if n != "blocks.1.ls2.gamma"}
    shorter = {**file, "norm.bias": torch.zeros(47)}
    other_size = {**file, "pos_embed": torch.zeros(1, 257, 48)}
    for changed, first in (
        (missing, "blocks.1.ls2.gamma"),
        (shorter, "norm.bias"),
        (other_size, "pos_embed"),
        ({**file, "blocks.2.norm1.bias": torch.zeros(48)}, "blocks.2.norm1.bias"),
        ({**file, "mask_token": torch.zeros(1, 48)}, "mask_token"),
    ):
        saved(path, changed)
        with pytest.raises(TeacherError, match=rf"\(1 of {total} tensors differ, first {first}\)"):
            loaded(card, path)
    with pytest.raises(TeacherError, match=f"of {total} tensors differ, first cls_token"):
        loaded(card, saved(path, {"model": file}))


def test_table_that_is_no_square_or_of_another_width_is_refused(tmp_path: Path) -> None:
    card = small("dinov2_vits14")
    file = randomised(network(card))
    for table in (torch.zeros(1, 1300, 48), torch.zeros(1, 1370, 47), torch.zeros(1370, 48)):
        path = saved(tmp_path / "weights.pth", {**file, "pos_embed": table})
        with pytest.raises(TeacherError, match="first pos_embed"):
            loaded(card, path)


def test_kind_of_names_that_is_not_known_is_refused(tmp_path: Path) -> None:
    card = replace(CARDS["uni"], keys="klingon")
    with pytest.raises(TeacherError, match="no kind of weights 'klingon'; known are same, order"):
        load_weights(nn.Linear(1, 1), tmp_path / "absent.pth", card)


def test_order_is_not_enough_if_there_are_more_or_fewer(tmp_path: Path) -> None:
    card = CARDS["efficientnet_lite0"]
    path = find_weights(card)
    assert path is not None
    whole = read_weights(path)
    fewer = dict(list(whole.items())[:-5])
    with pytest.raises(TeacherError, match=r"\(2 of 294 tensors differ"):
        loaded(card, saved(tmp_path / "fewer.pth", fewer))
    with pytest.raises(TeacherError, match="1 of 294 tensors differ, first more"):
        loaded(card, saved(tmp_path / "more.pth", {**whole, "more": torch.zeros(1)}))


def test_a_pickle_is_not_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    path = saved(tmp_path / "weights.pth", {"weight": Bomb()})
    with pytest.raises(TeacherError, match=r"holds pickled objects, .* are never read"):
        read_weights(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """Cut off anywhere, or not a file of weights at all."""
    path = saved(tmp_path / name, {"weight": torch.randn(50, 50)})
    whole, rng = path.read_bytes(), random.Random(0)
    damaged = [whole[: rng.randrange(len(whole) - 1)] for _ in range(20)]
    for content in (b"", b"hello", rng.randbytes(1000), *damaged):
        path.write_bytes(content)
        with pytest.raises(TeacherError, match=f"^{name} ") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
