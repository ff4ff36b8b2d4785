"""Teachers over tiles: the right numbers, once."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from featurestore import IdentityError, Lake, open_lake
from ingest import CARDS, TeacherError, list_teachers, load_teacher
from ingest.encoder import TimmEncoder, load_weights, preprocess, resized
from ingest.ray_extract import Extractor, extract, plan
from tests.conftest import REAL_SLIDE, TEACHERS, shard_samples


@pytest.mark.parametrize("name", TEACHERS)
def test_column_equals_timm_on_the_stored_tiles(lake: Lake, name: str) -> None:
    """The reference: plain timm, its weights put in by hand, PIL, timm's own mean and std."""
    card = CARDS[name]
    bag = lake.bag(REAL_SLIDE.stem, name, mpp=2.0)
    row = next(r for r in lake.tiles_of(mpp=2.0).iter_rows(named=True)
               if r["slide_id"] == REAL_SLIDE.stem)  # fmt: skip
    path = card.weights_path()
    assert path is not None
    model = timm.create_model(card.architecture, num_classes=1000).eval()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    assert model.pretrained_cfg["mean"] == card.mean
    assert model.pretrained_cfg["std"] == card.std
    assert model.pretrained_cfg["input_size"][1] == card.input_px
    assert model.num_features == card.dim
    for tile_id, sample in shard_samples(lake.store.path(row["shard"])).items():
        picture = Image.open(io.BytesIO(sample["jpg"])).resize(
            (card.input_px,) * 2, Image.Resampling.BICUBIC
        )
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        x = (x - torch.tensor(card.mean)[:, None, None]) / torch.tensor(card.std)[:, None, None]
        with torch.inference_mode():
            wanted = model.forward_head(model.forward_features(x[None]), pre_logits=True)[0]
        ours = bag.features[bag.tile_id.tolist().index(tile_id)]
        cosine = torch.cosine_similarity(wanted, torch.from_numpy(ours.astype(np.float32)), dim=0)
        assert cosine > 0.9999, tile_id


def test_everything_is_complete(lake: Lake) -> None:
    info = lake.info()["features"]
    assert {(f["teacher"], f["mpp"]) for f in info} == {
        (t, m) for t in TEACHERS for m in (0.5, 2.0)
    }
    assert all(f["complete"] and f["dim"] == 1280 for f in info)


def test_nothing_left_needs_no_ray(lake_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.ray_extract.ray_session", None)
    result = extract(str(lake_copy), TEACHERS)
    assert [counts["tiles"] for counts in result.teachers.values()] == [0, 0]


@pytest.mark.usefixtures("ray_up")
def test_new_slide_gets_the_old_teachers_and_no_other_is_run(
    lake_copy: Path, tmp_path: Path
) -> None:
    from ingest.ray_ingest import ingest
    from tests.conftest import CONFIG

    extra = tmp_path / "extra.svs"
    extra.write_bytes(REAL_SLIDE.read_bytes())
    ingest(str(lake_copy), [str(extra)], CONFIG)
    old = open_lake(lake_copy)
    units = plan(old, [TEACHERS[0]], [0.5])
    assert [[row["slide_id"] for row in unit.slides] for unit in units] == [["extra"]]
    result = extract(str(lake_copy), [TEACHERS[0]], mpps=[0.5])
    lake = open_lake(lake_copy)
    same, new = (lake.bag(name, TEACHERS[0], mpp=0.5) for name in (REAL_SLIDE.stem, "extra"))
    np.testing.assert_array_equal(same.features, new.features)
    assert result.teachers[TEACHERS[0]]["tiles"] == len(new.tile_id)


def test_damaged_shard_fails_its_fragment_and_no_other(
    lake_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake(lake_copy)
    first = lake.tiles_of(mpp=2.0).sort("fragment").row(0, named=True)
    Path(lake.store.path(first["shard"])).write_bytes(b"\0" * first["shard_bytes"])
    monkeypatch.setitem(CARDS, "twin", replace(CARDS[TEACHERS[0]], name="twin"))
    extractor = Extractor()
    reasons = {}
    for unit in plan(lake, ["twin"], [2.0]):
        item = {"unit": pickle.dumps(unit), "store": lake.uri, "threads": 1}
        outcome = pickle.loads(extractor(item)["outcome"])
        reasons[unit.fragment] = outcome.reason
        lake.committer.commit_columns(2.0, outcome.files)
    assert len(reasons) > 1
    assert first["shard"] in reasons.pop(first["fragment"])
    assert set(reasons.values()) == {None}
    (found,) = [f for f in lake.refreshed().info()["features"] if f["teacher"] == "twin"]
    assert not found["complete"]
    assert found["tiles"] > 0


def test_another_encoder_under_a_taken_name_is_refused(
    lake_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = CARDS[TEACHERS[0]]
    monkeypatch.setitem(CARDS, TEACHERS[0], replace(card, mean=(0.485, 0.456, 0.406)))
    with pytest.raises(IdentityError, match="differs in: mean"):
        extract(str(lake_copy), [TEACHERS[0]])


def test_unknown_teacher_gets_a_hint(filled: Path) -> None:
    with pytest.raises(TeacherError, match="did you mean 'efficientnet_lite0'"):
        extract(str(filled), ["efficientnet_light0"])


def test_weights_of_another_network_are_refused() -> None:
    path = CARDS["efficientnet_lite1"].weights_path()
    assert path is not None
    with pytest.raises(TeacherError, match="tensors differ"):
        TimmEncoder(CARDS["efficientnet_lite0"], path)


def test_missing_weights_say_what_to_install(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(CARDS["efficientnet_lite0"], name="absent", package="no-such-package")
    monkeypatch.setitem(CARDS, "absent", card)
    with pytest.raises(TeacherError, match="install no-such-package; usable now: efficientnet"):
        load_teacher(lake.store, "absent")
    assert {r["teacher"]: r["available"] for r in list_teachers()}["absent"] is False


def test_a_pickle_is_not_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    path = tmp_path / "weights.pth"
    torch.save({"weight": Bomb()}, path)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(pickle.UnpicklingError):
        load_weights(model, path, CARDS["efficientnet_lite0"])
    assert not (tmp_path / "exploded").exists()


def test_preprocessing_is_that_of_the_card() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    wanted: Tensor = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    wanted = (wanted - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(preprocess(tiles, mean, std), wanted, atol=1e-5, rtol=1e-5)


def test_resizing_is_that_of_pil() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    for side in (32, 56, 80):
        wanted = [
            np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC))
            for tile in tiles
        ]
        gap = np.abs(resized(tiles, side, "bicubic").astype(int) - np.stack(wanted))
        assert gap.max() <= 1
    assert resized(tiles, 64, "bicubic") is tiles


def test_numbers_do_not_depend_on_threads(lake: Lake) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (9, 256, 256, 3)).astype(np.uint8)
    one, two = (load_teacher(lake.store, TEACHERS[0], threads=n)(tiles) for n in (1, 2))
    np.testing.assert_array_equal(one, two)
