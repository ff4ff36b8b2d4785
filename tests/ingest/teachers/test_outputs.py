"""Names of columns: what is taken of a teacher's tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downstream.run.feature_bags import teachers_of
from featurestore import tile_ids
from featurestore.tables.schema import TEACHER_NAME
from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card
from ingest.teachers.outputs import card_name, in_share, outputs_of, places

VIT = Card(
    name="vit",
    architecture="vit_tiny_patch16_224",
    dim=192,
    input_px=224,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    poolings=("cls+mean", "cls"),
    prefix_tokens=1,
    patch_px=16,
)
CNN = Card(
    name="cnn",
    architecture="resnet18",
    dim=512,
    input_px=224,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("vit", {"vit:cls+mean": 384}),
        ("vit:cls+mean", {"vit:cls+mean": 384}),
        ("vit:cls", {"vit:cls": 192}),
        ("vit:mean", {"vit:mean": 192}),
        ("vit:cls@L6", {"vit:cls@L6": 192}),
        ("vit:cls+mean@L6@S2", {"vit:cls+mean@L6@S2": 384}),
        ("vit:patches", {"vit:patches": 196 * 192}),
        ("vit:patches20", {"vit:patches20": 20 * 192, "vit:places20": 20}),
        ("vit:patches20@L3", {"vit:patches20@L3": 20 * 192, "vit:places20@L3": 20}),
        ("cnn", {"cnn": 512}),
        ("cnn:own", {"cnn": 512}),
        ("cnn@S1", {"cnn@S1": 512}),
    ],
)
def test_columns_of_a_name(name: str, columns: dict[str, int]) -> None:
    card = {"vit": VIT, "cnn": CNN}[card_name(name)]
    outputs = outputs_of(name, card)
    assert {output.column: output.dim for output in outputs} == columns
    for output in outputs:
        assert TEACHER_NAME.fullmatch(output.column)
        assert outputs_of(output.column.replace("places", "patches"), card) == outputs
        assert teachers_of(f"{output.column}+other+{output.column}") == [
            output.column,
            "other",
            output.column,
        ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit:own", "gives cls\\+mean, cls, mean, patches, not own"),
        ("cnn:cls", "gives own, not cls"),
        ("vit:cls20", "has 196 patch tokens a tile, not 20 of cls"),
        ("vit:patches196", "has 196 patch tokens a tile, not 196 of patches"),
        ("cnn@L3", "gives own of its last block alone"),
        ("cnn:patches", "gives own, not patches"),
    ],
)
def test_what_a_card_can_not_give_is_refused(name: str, reason: str) -> None:
    with pytest.raises(TeacherError, match=reason):
        outputs_of(name, {"vit": VIT, "cnn": CNN}[card_name(name)])


@pytest.mark.parametrize(
    "name", ["", "a b", "vit:", "vit@L0", "vit:cls@X1", "vit:patches05", "a/b"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(TeacherError, match="names no teacher"):
        card_name(name)


@pytest.mark.parametrize("name", ["a+b", "+mean", "a:", "a:cls+max", "x" * 101, "a.b", "a:b+mean+"])
def test_other_columns_are_refused(name: str) -> None:
    assert not TEACHER_NAME.fullmatch(name)


@pytest.mark.slow
@given(st.integers(0, 4000), st.integers(2, 400), st.data())
def test_places_are_a_function_of_the_key(slide: int, patches: int, data: st.DataObject) -> None:
    sample = data.draw(st.integers(1, patches - 1))
    keys = tile_ids(slide, 0.5, np.arange(50) // 10, np.arange(50) % 10)
    kept = places(keys, patches, sample)
    assert kept.shape == (50, sample)
    assert (np.diff(kept, axis=1) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < patches
    np.testing.assert_array_equal(kept[7:9], places(keys[7:9], patches, sample))


def test_all_places_are_as_likely() -> None:
    keys = tile_ids(3, 0.5, np.arange(4900) // 70, np.arange(4900) % 70)
    counts = np.bincount(places(keys, 196, 20).ravel(), minlength=196)
    expected = 4900 * 20 / 196
    # Five standard deviations of a binomial count.
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    share = in_share(keys, 0.3).mean()
    assert abs(share - 0.3) < 0.035
    assert in_share(keys, 1.0).all()
    assert (in_share(keys, 0.6) | ~in_share(keys, 0.3)).all()


def test_a_quantised_column_has_its_sources_card_and_no_teacher_makes_it() -> None:
    assert card_name("vit:cls+mean~int8") == card_name("vit:cls+mean") == "vit"
    with pytest.raises(TeacherError, match="quantise LAKE --features vit --codec int8"):
        outputs_of("vit~int8", VIT)
