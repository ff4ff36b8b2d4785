"""Convolutional networks by ONNX Runtime: torch's numbers, and the same ones in any batch."""

from pathlib import Path

import numpy as np
import pytest

from featurestore import IdentityError, open_lake
from featurestore.tables.schema import features_table, identity_of
from ingest import TeacherError, find_teachers, load_encoder
from ingest.teachers.extract_plan import plan
from ingest.teachers.onnx_engine import onnx_network
from tests.conftest import TEACHERS
from tests.ingest.teachers.test_extract import fill


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.slow
def test_columns_are_those_of_torch(lake_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{TEACHERS[0]}@S1"
    lake = fill(open_lake(lake_copy), [name], engine="onnxruntime", threads=2)
    identity = identity_of(lake.table(features_table(2.0)).schema.field(name))
    assert identity["engine"] == "onnxruntime"
    with pytest.raises(IdentityError, match="differs in: engine"):
        fill(lake, [name], engine="torch")
    teachers = find_teachers(lake.store, [name])
    assert not plan(lake, teachers, [2.0])  # the column goes on as it was begun
    by_torch = load_encoder(lake.store, teachers[0])
    by_onnx = load_encoder(lake.store, teachers[0], engine="onnxruntime", threads=2)
    tiles = np.random.default_rng(0).integers(0, 256, (11, 256, 256, 3)).astype(np.uint8)
    keys = np.arange(11)
    one, two = (encoder(tiles, keys, teachers[0].outputs)[name] for encoder in (by_torch, by_onnx))
    assert np.abs(one - two).max() < 1e-4 * one.std()
    parts = [by_onnx(tiles[i : i + 1], keys[:1], teachers[0].outputs)[name] for i in range(11)]
    np.testing.assert_array_equal(np.concatenate(parts), two)
    monkeypatch.setattr("ingest.teachers.extract_plan.ONNX_TILES", 1)
    (other,) = find_teachers(lake.store, [f"{TEACHERS[0]}@S2"])
    (unit,) = plan(lake, [other], [2.0])[:1]
    assert identity_of(unit.fields[0])["engine"] == "onnxruntime"
    monkeypatch.setattr("ingest.teachers.onnx_engine.has_onnx", lambda: False)
    with pytest.raises(TeacherError, match=r"was begun with ONNX Runtime: pip install 'slidelake"):
        load_encoder(lake.store, teachers[0], engine="onnxruntime")


@pytest.mark.slow
def test_a_network_that_gives_other_numbers_is_not_kept(
    lake_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    (teacher,) = find_teachers(open_lake(lake_copy).store, [TEACHERS[0]])
    model = load_encoder(open_lake(lake_copy).store, teacher)._model
    monkeypatch.setattr("ingest.teachers.onnx_engine.NEAR", 0.0)
    with pytest.raises(TeacherError, match="gives other numbers in ONNX Runtime"):
        onnx_network(model, teacher.card, teacher.sha256)
    assert not list((tmp_path / "other").rglob("*.onnx"))
