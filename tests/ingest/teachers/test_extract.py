"""Teachers over tiles: the right numbers, once."""

import io
import pickle
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import s3fs
import timm
import torch
from PIL import Image

from featurestore import IdentityError, Lake, LakeError, copy_lake, open_lake, verify
from featurestore.annotations.annotating import annotate
from ingest import (
    CARDS,
    Teacher,
    TeacherError,
    find_teachers,
    list_teachers,
    load_encoder,
)
from ingest.stain import stain_variant
from ingest.teachers.cards.card import Engine
from ingest.teachers.extract_plan import choose_tiles, plan
from ingest.teachers.extractor import Extractor
from ingest.teachers.ray_extract import extract
from ingest.teachers.weights.weights_files import find_weights
from ingest.teachers.work.units import Choice, Outcome, Unit
from ingest.tile_jpeg import decode_tile
from tests.conftest import REAL_SLIDE, ROOT, TEACHERS, shard_samples
from tests.worlds.s3 import Bucket

ALL = Choice()


@pytest.mark.parametrize("name", TEACHERS)
def test_column_equals_timm_on_the_stored_tiles(lake: Lake, name: str) -> None:
    """The reference: plain timm, its weights put in by hand, PIL, timm's own mean and std."""
    card = CARDS[name]
    bag = lake.bag(REAL_SLIDE.stem, name, mpp=2.0)
    row = next(r for r in lake.tiles_of(mpp=2.0).iter_rows(named=True)
               if r["slide_id"] == REAL_SLIDE.stem)  # fmt: skip
    path = find_weights(card)
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
            expected = model.forward_head(model.forward_features(x[None]), pre_logits=True)[0]
        ours = bag.features[bag.tile_id.tolist().index(tile_id)]
        cosine = torch.cosine_similarity(expected, torch.from_numpy(ours.astype(np.float32)), dim=0)
        assert cosine > 0.9999, tile_id


def test_everything_is_complete(lake: Lake) -> None:
    info = lake.info()["features"]
    assert {(f["teacher"], f["mpp"]) for f in info} == {
        (t, m) for t in TEACHERS for m in (0.5, 2.0)
    }
    assert all(f["complete"] and f["dim"] == 1280 for f in info)


def test_nothing_left_needs_no_ray(lake_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray.init", "ingest.teachers.ray_extract.place"):
        monkeypatch.setattr(name, None)
    result = extract(str(lake_copy), TEACHERS)
    assert [counts["tiles"] for counts in result.teachers.values()] == [0, 0]


@pytest.mark.usefixtures("ray_up")
@pytest.mark.slow
def test_new_slide_gets_the_old_teachers_and_no_other_is_run(
    lake_copy: Path, tmp_path: Path
) -> None:
    from ingest.ray_ingest import ingest
    from tests.conftest import CONFIG

    extra = tmp_path / "extra.svs"
    extra.write_bytes(REAL_SLIDE.read_bytes())
    ingest(str(lake_copy), [str(extra)], CONFIG)
    old = open_lake(lake_copy)
    units = plan(old, find_teachers(old.store, [TEACHERS[0]]), [0.5])
    assert [[row["slide_id"] for row in unit.slides] for unit in units] == [["extra"]]
    result = extract(str(lake_copy), [TEACHERS[0]], mpps=[0.5])
    lake = open_lake(lake_copy)
    same, new = (lake.bag(name, TEACHERS[0], mpp=0.5) for name in (REAL_SLIDE.stem, "extra"))
    np.testing.assert_array_equal(same.features, new.features)
    assert result.teachers[TEACHERS[0]]["tiles"] == len(new.tile_id)


def run_unit(
    extractor: Extractor, lake: Lake, teachers: list[Teacher], unit: Unit, threads: int = 1
) -> Outcome:
    """Do what an actor does with a unit, without the pool around it."""
    settings = {"store": lake.uri, "threads": threads, "device": "cpu"}
    item = {"unit": pickle.dumps(unit), "teachers": pickle.dumps(teachers), **settings}
    outcome: Outcome = pickle.loads(extractor(item)["outcome"])
    return outcome


def fill(
    lake: Lake,
    names: list[str],
    mpp: float = 2.0,
    *,
    threads: int = 1,
    choice: Choice = ALL,
    engine: Engine | None = None,
) -> Lake:
    """Do all that `extract` does, in this process."""
    teachers, extractor = find_teachers(lake.store, names), Extractor()
    for unit in plan(lake, teachers, [mpp], choice=choice, engine=engine):
        outcome = run_unit(extractor, lake, teachers, unit, threads)
        assert outcome.reason is None
        lake.committer.commit_columns(mpp, outcome.files)
    return lake.refreshed()


@pytest.mark.slow
def test_a_slide_in_a_bucket_takes_two_requests_for_its_tiles(
    filled: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for the index and one for the shard, however many tiles there are."""
    local = open_lake(filled)
    copy_lake(filled, bucket.uri)
    lake = open_lake(bucket.uri)
    gets: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: s3fs.S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if method == "get_object" and "/tiles/" in kwargs["Key"]:
            gets[kwargs["Key"].rpartition("/tiles/")[2]] += 1
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("ingest.teachers.extractor.BATCH_TILES", 3)
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    (teacher,) = find_teachers(lake.store, [f"{TEACHERS[0]}@S1"])
    extractor = Extractor()
    for unit in plan(lake, [teacher], [0.5]):
        outcome = run_unit(extractor, lake, [teacher], unit, threads=2)
        assert outcome.reason is None
        lake.committer.commit_columns(0.5, outcome.files)
    tiles = local.tiles_of(mpp=0.5)
    assert max(tiles["tiles"].to_list()) > 9
    assert set(gets.values()) == {1}
    assert len(gets) == 2 * tiles.height
    assert not list(tmp_path.iterdir())
    gets.clear()
    few = Choice(where="tile_id % 7 = 0")
    for unit in plan(lake, find_teachers(lake.store, [f"{TEACHERS[0]}@S2"]), [0.5], choice=few):
        teachers = find_teachers(lake.store, [f"{TEACHERS[0]}@S2"])
        assert run_unit(extractor, lake, teachers, unit).reason is None
    assert max(gets.values()) < 9


def test_damaged_shard_fails_its_fragment_and_no_other(
    lake_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake(lake_copy)
    first = lake.tiles_of(mpp=2.0).sort("fragment").row(0, named=True)
    Path(lake.store.path(first["shard"])).write_bytes(b"\0" * first["shard_bytes"])
    monkeypatch.setitem(CARDS, "twin", replace(CARDS[TEACHERS[0]], name="twin"))
    extractor = Extractor()
    reasons = {}
    teachers = find_teachers(lake.store, ["twin"])
    for unit in plan(lake, teachers, [2.0]):
        outcome = run_unit(extractor, lake, teachers, unit)
        reasons[unit.fragment] = outcome.reason
        lake.committer.commit_columns(2.0, outcome.files)
    assert len(reasons) > 1
    assert first["shard"] in str(reasons.pop(first["fragment"]))
    assert set(reasons.values()) == {None}
    (twin,) = [f for f in lake.refreshed().info()["features"] if f["teacher"] == "twin"]
    assert not twin["complete"]
    assert twin["tiles"] > 0


def test_columns_of_one_and_of_two_workers_are_the_same(
    lake_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lake's column was made by Ray with two actors, the twin's in this process by one."""
    monkeypatch.setitem(CARDS, "twin", replace(CARDS[TEACHERS[0]], name="twin"))
    lake = fill(open_lake(lake_copy), ["twin"])
    for slide in lake.tiles_of(mpp=2.0)["slide_id"]:
        one, two = (lake.bag(slide, name, mpp=2.0).features for name in ("twin", TEACHERS[0]))
        np.testing.assert_array_equal(one, two)


def test_another_encoder_under_a_taken_name_is_refused(
    lake_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = CARDS[TEACHERS[0]]
    monkeypatch.setitem(CARDS, TEACHERS[0], replace(card, mean=(0.485, 0.456, 0.406)))
    with pytest.raises(IdentityError, match="differs in: mean"):
        extract(str(lake_copy), [TEACHERS[0]])


def test_unknown_teacher_gets_a_hint(filled: Path) -> None:
    with pytest.raises(TeacherError, match=r"did you mean efficientnet_lite0( or \w+)*\?"):
        extract(str(filled), ["efficientnet_light0"])


def test_missing_weights_say_where_to_get_them(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card = replace(CARDS["efficientnet_lite0"], name="absent", package="no-such-package")
    monkeypatch.setitem(CARDS, "absent", card)
    with pytest.raises(
        TeacherError, match=r"install no-such-package; or put absent\.saf.*usable now: .*lite0"
    ):
        find_teachers(lake.store, ["absent"])
    assert {r["teacher"]: r["available"] for r in list_teachers()}["absent"] is False
    weights = find_weights(CARDS["efficientnet_lite0"])
    assert weights is not None
    (tmp_path / "absent.pth").write_bytes(weights.read_bytes())
    (teacher,) = find_teachers(lake.store, ["absent"], folder=str(tmp_path))
    assert teacher.sha256 == find_teachers(lake.store, ["efficientnet_lite0"])[0].sha256
    rows = list_teachers(folder=str(tmp_path))
    assert {r["teacher"]: r["available"] for r in rows}["absent"] is True
    monkeypatch.setenv("SLIDELAKE_WEIGHTS", str(tmp_path))
    assert find_weights(card) == tmp_path / "absent.pth"


def test_gated_weights_say_whom_to_ask(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub can't be reached without a network; what it has in its cache is looked for first."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reason = "MahmoodLab/UNI2-h, which asks for its licence .* the hub can't be reached"
    with pytest.raises(TeacherError, match=reason):
        find_teachers(lake.store, ["uni2_h"])


def test_changed_weights_are_not_run(lake: Lake, tmp_path: Path) -> None:
    """It is as when a worker of a cluster has another file of that name than the driver."""
    weights = find_weights(CARDS["efficientnet_lite0"])
    assert weights is not None
    (teacher,) = find_teachers(lake.store, ["efficientnet_lite0"])
    other = find_weights(CARDS["efficientnet_lite1"])
    assert other is not None
    (tmp_path / "efficientnet_lite0.pth").write_bytes(other.read_bytes())
    with pytest.raises(TeacherError, match="other weights of 'efficientnet_lite0'"):
        load_encoder(lake.store, replace(teacher, folder=str(tmp_path)))


OWN = ROOT / "examples" / "own_encoder.py"


def test_an_encoder_of_ones_own(lake_copy: Path, tmp_path: Path) -> None:
    lake = fill(open_lake(lake_copy), [str(OWN)])
    row = lake.tiles_of(mpp=2.0).row(0, named=True)
    bag = lake.bag(row["slide_id"], "colour-moments", mpp=2.0)
    tiles = shard_samples(lake.store.path(row["shard"]))
    for key, feature in zip(bag.tile_id.tolist(), bag.features, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(tiles[key]["jpg"])), np.float32) / 127.5 - 1
        assert np.abs(feature[:3] - pixels.mean(axis=(0, 1))).max() < 0.01
    changed = tmp_path / "own.py"
    changed.write_text(OWN.read_text().replace("clamp_min(0)", "clamp_min(1e-9)"))
    with pytest.raises(IdentityError, match="differs in: weights_sha256"):
        fill(lake, [str(changed)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "must define CARD, a slidelake.Card, and build"),
        ("import nowhere_at_all", "can't be run: ModuleNotFoundError"),
        ("def build(:", "can't be run: SyntaxError"),
        (OWN.read_text().replace("colour-moments", "uni"), "which is a teacher of slidelake's own"),
        (OWN.read_text() + "\nWEIGHTS = 'nowhere.pth'", "its WEIGHTS, nowhere.pth, are not a file"),
    ],
)
def test_files_that_are_no_encoders(lake: Lake, tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(TeacherError, match=reason):
        find_teachers(lake.store, [str(path)])
    with pytest.raises(TeacherError, match="can't be read"):
        find_teachers(lake.store, [str(tmp_path / "none.py")])


def test_a_wrong_dim_is_refused_before_anything_is_written(lake_copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN.read_text().replace("dim=30", "dim=31").replace("colour-", "wrong-"))
    lake = open_lake(lake_copy)
    teachers = find_teachers(lake.store, [str(path)])
    outcome = run_unit(Extractor(), lake, teachers, plan(lake, teachers, [2.0])[0])
    assert "gave [30] values a tile; its card says 31" in str(outcome.reason)
    assert not outcome.files


def test_what_is_not_finite_is_refused_and_the_tile_named(lake_copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    text = OWN.read_text().replace(
        "return torch.cat(moments, dim=1)", "return torch.cat(moments, 1) / 0"
    )
    path.write_text(text.replace("colour-moments", "infinite"))
    lake = open_lake(lake_copy)
    teachers = find_teachers(lake.store, [str(path)])
    unit = plan(lake, teachers, [2.0])[0]
    outcome = run_unit(Extractor(), lake, teachers, unit)
    first = lake.bag(unit.slides[0]["slide_id"], TEACHERS[0], mpp=2.0).tile_id[0]
    assert f"NaN or infinite for tile {first}" in str(outcome.reason)


def test_tiles_that_were_not_asked_for(lake_copy: Path) -> None:
    """Their rows are NaN, bags leave them out, and everything still sums to what it should."""
    lake = open_lake(lake_copy)
    choice = Choice(where="tissue > 0.6 AND x % 512 = 0", share=0.7)
    lake = fill(lake, [f"{TEACHERS[0]}@S1", str(OWN)], mpp=0.5, choice=choice, threads=2)
    tiles = lake.tiles(mpp=0.5).filter((pl.col("tissue") > 0.6) & (pl.col("x") % 512 == 0))
    expected_ids = set(tiles.collect()["tile_id"])
    bag_ids: set[int] = set()
    for slide in lake.tiles_of(mpp=0.5)["slide_id"]:
        names = ["colour-moments", f"{TEACHERS[0]}@S1"]
        bag = lake.bag(slide, names, mpp=0.5)
        assert np.isfinite(bag.features).all()
        bag_ids |= set(bag.tile_id.tolist())
    assert bag_ids < expected_ids
    assert 0.55 < len(bag_ids) / len(expected_ids) < 0.85
    frame = lake.features("colour-moments", mpp=0.5).collect()
    with_features = frame.filter(~pl.col("colour-moments").arr.first().is_nan())
    assert set(with_features["tile_id"]) == bag_ids
    assert verify(lake).ok
    listed = [f for f in lake.info()["features"] if f["teacher"] == "colour-moments"]
    assert [(f.get("where"), f.get("share")) for f in listed] == [(choice.where, 0.7)]
    with pytest.raises(IdentityError, match="differs in: share, where"):
        fill(lake, [str(OWN)], mpp=0.5)
    assert not plan(lake, find_teachers(lake.store, [str(OWN)]), [0.5], choice=choice)


def test_a_predicate_may_name_what_is_known_of_slides(lake_copy: Path) -> None:
    """Tiles of slides for which it does not hold are not asked for; another table is refused."""
    lake = open_lake(lake_copy)
    grades = pl.DataFrame({"slide_id": ["P000-1", "P002-1"], "grade": [2, 1]})
    annotate(lake, grades, "clinical")
    where = "clinical.grade = 2 AND tissue > 0.5"
    choice = choose_tiles(lake.refreshed(), [2.0], where, None)
    lake = fill(lake.refreshed(), [str(OWN)], mpp=2.0, choice=choice)
    frame = lake.features("colour-moments", mpp=2.0).collect()
    with_features = frame.filter(~pl.col("colour-moments").arr.first().is_nan())
    chosen = frame.filter((pl.col("slide_id") == "P000-1") & (pl.col("tissue") > 0.5))
    assert with_features["tile_id"].to_list() == chosen["tile_id"].to_list()
    assert with_features.height
    assert verify(lake).ok
    assert not plan(lake, find_teachers(lake.store, [str(OWN)]), [2.0], choice=choice)
    annotate(lake, grades.with_columns(grade=pl.lit(2)), "clinical", replace_old=True)
    other = choose_tiles(lake.refreshed(), [2.0], where, None)
    with pytest.raises(IdentityError, match="differs in: annotations"):
        fill(lake.refreshed(), [str(OWN)], mpp=2.0, choice=other)


def test_questions_that_tiles_can_not_answer(lake_copy: Path) -> None:
    with pytest.raises(LakeError, match=r"--where 'tisue > 1' can't be asked of tiles \(tile_id,"):
        extract(str(lake_copy), TEACHERS, where="tisue > 1")
    with pytest.raises(LakeError, match="share 0 given"):
        extract(str(lake_copy), TEACHERS, share=0)


@pytest.mark.slow
def test_stain_variants_are_those_of_the_tiles(lake_copy: Path) -> None:
    lake = fill(open_lake(lake_copy), [f"{TEACHERS[0]}@S1", TEACHERS[0]])
    row = lake.tiles_of(mpp=2.0).row(0, named=True)
    plain, varied = (
        lake.bag(row["slide_id"], name, mpp=2.0) for name in (TEACHERS[0], f"{TEACHERS[0]}@S1")
    )
    assert (plain.features != varied.features).any(axis=1).all()
    samples = shard_samples(lake.store.path(row["shard"]))
    tiles = np.stack([decode_tile(samples[key]["jpg"]) for key in varied.tile_id.tolist()])
    (teacher,) = find_teachers(lake.store, [TEACHERS[0]])
    stained = stain_variant(tiles, varied.tile_id, 1)
    direct = load_encoder(lake.store, teacher)(stained, varied.tile_id, teacher.outputs)
    np.testing.assert_array_equal(varied.features, direct[TEACHERS[0]].astype(np.float16))
