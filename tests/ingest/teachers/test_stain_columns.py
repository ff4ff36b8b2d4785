"""Columns of tiles whose stains are normalised: pixels, names and identity."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.own_encoder import CARD
from featurestore import LakeConfig, ShardReader
from featurestore.tables.schema import TEACHER_NAME
from ingest import TeacherError, load_encoder
from ingest.stain_normalisation import SAMPLE_TILES, fitted
from ingest.teachers.outputs import drawn, outputs_of
from ingest.teachers.own_file import split_own
from ingest.tile_jpeg import decode_tiles
from tests.worlds.real_lake import fill, make_lake, teacher_of


def test_a_column_is_of_tiles_normalised_by_a_fit_of_the_slide(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "made", LakeConfig(mpps=(0.5, 1.0)))
    names = [f"{CARD.name}@{method}" for method in ("macenko", "reinhard")]
    teachers = [teacher_of(CARD, name) for name in names]
    both = replace(teachers[0], outputs=tuple(one.outputs[0] for one in teachers))
    lake, _ = fill(lake, both, mpp=0.5)
    row = lake.tiles_of(mpp=0.5).row(0, named=True)
    with ShardReader.of(lake.store, row) as shard:
        ids = shard.tile_id
        tiles = decode_tiles(shard.jpegs(ids))
    assert len(ids) > SAMPLE_TILES
    sample = tiles[drawn(ids, SAMPLE_TILES)]
    encoder = load_encoder(lake.store, teachers[0])
    for name, output in zip(names, both.outputs, strict=True):
        assert output.normalisation is not None
        normalise = fitted(output.normalisation, sample)
        assert normalise is not None
        expected = encoder(normalise(tiles), ids, [output])[name]
        bag = lake.bag("real", name, mpp=0.5)
        np.testing.assert_array_equal(bag.features, expected.astype(np.float16))
        record = {"method": output.normalisation, "version": 1, "tiles": SAMPLE_TILES}
        assert lake.identity(name, mpp=0.5)["normalisation"] == record


def test_tiles_of_a_fit_are_drawn_by_their_keys() -> None:
    keys = np.arange(1000) * 7919
    some = drawn(keys, 32)
    assert len(some) == 32
    assert (np.diff(some) > 0).all()
    np.testing.assert_array_equal(keys[some], np.sort(keys[::-1][drawn(keys[::-1], 32)]))
    np.testing.assert_array_equal(drawn(keys[:5], 32), np.arange(5))


def test_names() -> None:
    (output,) = outputs_of("colour-moments@reinhard", CARD)
    assert (output.column, output.normalisation) == ("colour-moments@reinhard", "reinhard")
    assert TEACHER_NAME.fullmatch(output.column)
    assert outputs_of(output.column, CARD) == [output]
    assert split_own("my/encoder.py:mean@L6@macenko") == ("my/encoder.py", ":mean@L6@macenko")
    for name in ("colour-moments@vahadane", "colour-moments@S1@macenko"):
        with pytest.raises(TeacherError, match="names no teacher"):
            outputs_of(name, CARD)
