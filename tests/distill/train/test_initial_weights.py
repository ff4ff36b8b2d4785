"""Students that start from weights: those of a file, a student, a teacher, or timm."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from distill.errors import DistillError
from distill.recipes.recipe_table import make_recipe
from distill.recipes.student_settings import TileStudent
from distill.train.distill_run import plan_run
from distill.train.initial_weights import find_initial_weights, start_from
from featurestore import Lake
from ingest import CARDS
from ingest.teachers import build
from ingest.teachers.weights.weights_files import find_weights
from tests.conftest import TEACHERS
from tests.distill.students.test_distill_export import NAME, STUDENTS, add_student, student
from tests.worlds.tile_worlds import TileWorld

__all__ = ["student"]
pytestmark = pytest.mark.usefixtures("one_thread")
DEEP: dict[str, Any] = {"depth": 4, "patch_size": 8}
SHALLOW: dict[str, Any] = {"depth": 2, "patch_size": 8}


def vit(init: object, *, arguments: dict[str, Any] = SHALLOW, input_px: int = 32) -> TileStudent:
    return TileStudent(
        architecture="test_vit", input_px=input_px, arguments=arguments, init=str(init)
    )


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Tensor]:
    """The weights of a deeper network, in a file as a self-supervised training keeps them."""
    torch.manual_seed(7)
    own = build("test_vit", 32, DEEP).state_dict()
    nested = {f"backbone.{name}": tensor for name, tensor in own.items()}
    online = {name: tensor + 1 for name, tensor in nested.items()}
    torch.save({"student": online, "teacher": nested, "epoch": 9}, tmp_path / "ssl.pt")
    save_file(own, tmp_path / "own.safetensors")
    return dict(own)


@pytest.mark.parametrize("file", ["ssl.pt", "own.safetensors"])
def test_a_student_starts_from_a_file(
    lake: Lake, weights: dict[str, Tensor], tmp_path: Path, file: str
) -> None:
    """Of a training's student and teacher the teacher counts; layers beyond the depth are left."""
    found = find_initial_weights(lake.store, vit(tmp_path / file))
    assert found is not None
    assert found.record() == {
        "source": str(tmp_path / file),
        "sha256": hashlib.sha256((tmp_path / file).read_bytes()).hexdigest(),
        "tensors": len(load(found.content)),
        "parameters": 1.0,
        "licence": {"text": "not stated", "forbids": []},
    }
    network = build("test_vit", 32, SHALLOW)
    start_from(network, found.content)
    state = network.state_dict()
    assert set(load(found.content)) == set(state)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


def test_positions_are_resized_to_the_students_input(
    lake: Lake, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    found = find_initial_weights(lake.store, vit(tmp_path / "own.safetensors", input_px=48))
    assert found is not None
    table = load(found.content)["pos_embed"]
    expected = timm.layers.resample_abs_pos_embed(weights["pos_embed"], [6, 6])
    torch.testing.assert_close(table, expected)


def test_a_moving_average_that_teaches_starts_there_too(
    lake: Lake, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    settings = vit(tmp_path / "own.safetensors")
    found = find_initial_weights(lake.store, settings)
    assert found is not None
    recipe = make_recipe("gpfm", ("a", "b"), targets="z-score", student=settings)
    state = TileWorld.make().task(recipe, initial=found.content).state_dict()
    places = [name for name in state if name.endswith("trunk.blocks.1.attn.qkv.weight")]
    assert len(places) == 2
    for name in places:
        torch.testing.assert_close(state[name], weights["blocks.1.attn.qkv.weight"])


def test_a_student_starts_from_a_student_or_a_teacher(student: Lake) -> None:
    other = TileStudent(**{**STUDENTS[NAME], "init": NAME})
    found = find_initial_weights(student.store, other)
    assert found is not None
    kept = student.read_bytes(f"students/{NAME}/model.safetensors")
    assert (found.parameters, found.sha256) == (1.0, hashlib.sha256(kept).hexdigest())
    assert TEACHERS[0] in found.licence.text
    again = find_initial_weights(
        student.store, TileStudent(architecture="efficientnet_lite0", init="efficientnet_lite0")
    )
    assert again is not None
    path = find_weights(CARDS["efficientnet_lite0"])
    assert path is not None
    assert again.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert again.licence.text == CARDS["efficientnet_lite0"].licence


def test_pretrained_weights_are_those_of_timm(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def create_model(name: str, *, pretrained: bool, **settings: Any) -> torch.nn.Module:  # noqa: ANN401
        asked.append(pretrained)
        network: torch.nn.Module = made(name, pretrained=False, **settings)
        return network

    made = timm.create_model
    monkeypatch.setattr("ingest.teachers.networks.has_pretrained", lambda hub: "test_vit" in hub)
    monkeypatch.setattr(timm, "create_model", create_model)
    found = find_initial_weights(lake.store, TileStudent(architecture="test_vit", init="timm"))
    assert found is not None
    assert asked == [False, True]
    assert (found.source, found.parameters, len(found.sha256)) == ("timm", 1.0, 64)


def test_weights_that_do_not_fit_are_refused(
    lake: Lake, weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store = tmp_path / "own.safetensors", lake.store
    monkeypatch.setattr("ingest.teachers.networks.has_pretrained", lambda _: False)
    with pytest.raises(
        DistillError, match=r"fills 0% of the parameters of test_efficientnet: none"
    ):
        find_initial_weights(store, TileStudent(architecture="test_efficientnet", init=str(file)))
    narrow = {**SHALLOW, "embed_dim": 32, "num_heads": 2}
    with pytest.raises(
        DistillError, match=r"fills \d+% .*cls_token is \[1, 1, 64\] there and \[1, 1, 32\]"
    ):
        find_initial_weights(store, vit(file, arguments=narrow))
    with pytest.raises(DistillError, match="there is no such file"):
        find_initial_weights(store, vit("nowhere.pt"))
    with pytest.raises(DistillError, match="no teacher 'nowhere'"):
        find_initial_weights(store, vit("nowhere"))
    with pytest.raises(DistillError, match="can't be reached; name a file of weights instead"):
        find_initial_weights(store, vit("timm"))
    with pytest.raises(DistillError, match="timm has no pretrained weights of conch;"):
        find_initial_weights(store, TileStudent(architecture="conch", input_px=448, init="timm"))
    with pytest.raises(DistillError, match="trains a FusionStudent; it has no"):
        make_recipe("shazam", ("a", "b"), init="timm")
    assert find_initial_weights(store, vit("")) is None


def test_the_weights_are_part_of_the_run_and_of_the_card(student: Lake) -> None:
    recipe = make_recipe("agglomerate", TEACHERS, **STUDENTS[NAME])
    plain = plan_run(student, recipe, student="s")
    runs = {
        plan_run(student, recipe, student="s", initial={"sha256": digest}).run for digest in "ab"
    }
    assert len({plain.run, *runs}) == 3
    licence = {"text": "MIT", "forbids": ["sharing derivatives"]}
    initial = {"source": "x.pt", "sha256": "ab12", "parameters": 0.875, "licence": licence}
    add_student(student, "started", STUDENTS[NAME], initial=initial)
    card = json.loads(student.read_bytes("students/started/card.json"))
    assert card["source"].endswith(", started from x.pt (SHA-256 ab12, 88% of the parameters)")
    assert card["licence"].endswith("; x.pt: MIT")
    assert card["forbids"] == ["sharing derivatives", "sharing students"]
