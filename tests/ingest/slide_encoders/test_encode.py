"""`slidelake encode` from cards to vectors in the lake, and what it refuses."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from distill.targets.missing_stats import stats
from featurestore import ColumnWriter, IdentityError, Lake, LakeConfig, create_lake, drop, open_lake
from ingest.errors import SlideEncoderError
from ingest.slide_encoders import SLIDE_ENCODERS, encode, encoding_run
from ingest.slide_encoders.networks.gigapath import GigaPathSlide
from ingest.slide_encoders.networks.pooling import Mean
from ingest.slide_encoders.networks.titan import Titan
from tests.conftest import ROOT
from tests.ingest.slide_encoders.test_slide_networks import (
    gigapath_formula,
    random_weights,
    titan_formula,
)
from tests.worlds.command_lines import Output, command_line
from tests.worlds.small_lake import add_teacher
from tests.worlds.training_lake import cut, register, row_of_cells

LINE = command_line(
    "encode {lake} --slide-encoder titan --features conch15 --mpp 0.5 --weights {weights} "
    "--device cpu --quiet --json"
)
OWN_LINE = command_line(
    "encode {lake} --slide-encoder {own} --features conch15 --by patient --name own.mine "
    "--code {code} --any-inputs"
)
DROP_LINE = command_line("drop {lake} --encoding own.mine")

SIZES = {"a": 30, "b": 12, "c": 1}
SIDE = 1024  # of 512 px at 0.5 mpp on a slide at 0.25
TITAN: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 6, "mlp_ratio": 4.0, "pool_heads": 6}
GIGAPATH: dict[str, Any] = {
    "input_dim": 10,
    "dim": 64,
    "depth": 2,
    "heads": 16,
    "grid": 1000,
    "layer": 2,
}


def make_lake(folder: Path, tile_px: int, column: str, dim: int) -> Lake:
    """A lake of three slides of two patients, with features of one column."""
    lake = create_lake(folder, LakeConfig(tile_px=tile_px, mpps=(0.5,)))
    numbers = register(lake, list(SIZES))
    patients = {"a": "p", "b": "p", "c": None}
    lake.committer.commit_slides(
        [
            cut(
                lake,
                numbers[name],
                name,
                {0.5: row_of_cells(tiles) + np.array([0, 3])},
                patient=patients[name],
                pixels=False,
                side_px=2 * tile_px,
            )
            for name, tiles in SIZES.items()
        ]
    )
    return add_teacher(lake.refreshed(), column, dim)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of which each test gets a copy."""
    folder = tmp_path_factory.mktemp("encode") / "lake"
    make_lake(folder, 512, "conch15", 24)
    return folder


@pytest.fixture
def lake(template: Path, tmp_path: Path) -> Lake:
    return open_lake(shutil.copytree(template, tmp_path / "lake"))


@pytest.fixture(autouse=True)
def small_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of the published encoders with smaller networks."""
    titan = replace(SLIDE_ENCODERS["titan"], arguments=TITAN, input_dim=24, dim=24)
    gigapath = replace(SLIDE_ENCODERS["gigapath_slide"], arguments=GIGAPATH, input_dim=10, dim=64)
    monkeypatch.setitem(SLIDE_ENCODERS, "titan", titan)
    monkeypatch.setitem(SLIDE_ENCODERS, "gigapath_slide", gigapath)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with random weights as the authors name them, and more than the networks use."""
    folder = tmp_path / "weights"
    folder.mkdir()
    titan = {f"vision_encoder.{n}": x for n, x in titan_weights().items()}
    more = ("vision_encoder.proj", "vision_encoder.attn_pool.query", "text_encoder.cls")
    save_file({**titan, **{name: torch.zeros(2) for name in more}}, folder / "titan.safetensors")
    save_file(gigapath_weights(), folder / "gigapath_slide.safetensors")
    return folder


def titan_weights() -> dict[str, torch.Tensor]:
    return {name: x.float() for name, x in random_weights(Titan(**TITAN)).items()}


def gigapath_weights() -> dict[str, torch.Tensor]:
    return {name: x.float() for name, x in random_weights(GigaPathSlide(**GIGAPATH)).items()}


def doubles(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.double() for name, x in weights.items()}


def rows_of(lake: Lake, slide: str, column: str) -> tuple[torch.Tensor, np.ndarray]:
    """Features and level-0 places of a slide's tiles, as a user's own code reads them."""
    bag = lake.bag(slide, column)
    return torch.from_numpy(bag.features).double(), np.stack([bag.x, bag.y], axis=1)


def vectors_of(lake: Lake, name: str) -> dict[str, np.ndarray]:
    frame = lake.refreshed().slide_features(name).collect()
    return dict(zip(frame[frame.columns[0]], frame["vector"].to_numpy(), strict=True))


def test_titan_on_a_lake_is_its_formula_on_the_same_rows(
    lake: Lake, weights: Path, capsys: Output
) -> None:
    answer = LINE.run(capsys, {"lake": lake.uri, "weights": weights}).value
    assert (answer["name"], answer["encoded"], answer["dim"]) == ("titan.conch15", 3, 24)
    assert "CC-BY-NC-ND-4.0" in answer["licence"]
    for slide, vector in vectors_of(lake, "titan.conch15").items():
        x, xy = rows_of(lake, slide, "conch15")
        wanted = titan_formula(x, xy, SIDE, doubles(titan_weights()), heads=6)
        assert np.allclose(vector, wanted, atol=1e-4)
    [encoding] = lake.refreshed().slide_encodings()
    assert encoding.identity["places"] == "cells from the first tile"
    assert encoding.identity["columns"] == {"conch15": {"weights": "conch15"}}
    assert encoding.licence is not None
    assert "sharing derivatives" in encoding.licence.forbids


def test_gigapath_on_a_lake_is_its_formula_on_the_same_rows(tmp_path: Path, weights: Path) -> None:
    lake = make_lake(tmp_path / "gigapath-lake", 256, "gigapath", 10)
    encode(lake.uri, "gigapath_slide", features=["gigapath"], weights=str(weights))
    vectors = vectors_of(lake, "gigapath_slide.gigapath")
    lengths = [1024, 5792, 32768, 185363, 1048576]
    for slide, vector in vectors.items():
        x, xy = rows_of(lake, slide, "gigapath")
        wanted = gigapath_formula(
            x, xy, 512, doubles(gigapath_weights()), lengths=lengths, layers=2
        )
        assert np.allclose(vector, wanted, atol=1e-4)


def test_baselines_are_what_numpy_and_scikit_learn_compute(lake: Lake) -> None:
    stats(lake.uri, ["conch15"], holdout=0.4, seed=2)
    for encoder in ("mean", "max", "pca"):
        encode(lake.uri, encoder, features=["conch15"])
    tiles = {slide: rows_of(lake, slide, "conch15")[0].numpy() for slide in SIZES}
    for slide, x in tiles.items():
        assert np.allclose(vectors_of(lake, "mean.conch15")[slide], x.mean(axis=0), atol=1e-6)
        assert np.array_equal(vectors_of(lake, "max.conch15")[slide], x.max(axis=0))
    [encoding] = [one for one in lake.refreshed().slide_encodings() if one.name == "pca.conch15"]
    folder = Path(lake.store.root) / str(encoding.identity["fitted_on"])
    train = pl.read_json((folder / "card.json").read_bytes())["slides"].to_list()[0]
    fitted = PCA(n_components=24, svd_solver="full").fit(np.concatenate([tiles[s] for s in train]))
    vector = vectors_of(lake, "pca.conch15")["b"]
    wanted = fitted.transform(tiles["b"]).mean(axis=0)
    strong = fitted.explained_variance_ > 1e-6
    assert np.allclose(np.abs(vector[strong]), np.abs(wanted[strong]), atol=1e-4)


def test_a_patient_is_encoded_from_all_slides(lake: Lake) -> None:
    encoded = encode(lake.uri, "max", features=["conch15"], by="patient")
    assert encoded.name == "max.conch15.patient"
    x = np.concatenate([rows_of(lake, slide, "conch15")[0].numpy() for slide in ("a", "b")])
    assert np.array_equal(vectors_of(lake, encoded.name)["p"], x.max(axis=0))
    with pytest.raises(SlideEncoderError, match="titan encodes a slide, not a patient"):
        encode(lake.uri, "titan", features=["conch15"], by="patient")


def test_sections_of_a_slide_have_vectors_of_their_own(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "sections", LakeConfig(tile_px=256, mpps=(0.5,)))
    [number] = register(lake, ["s"]).values()
    left = [[row, column] for row in range(6) for column in (3, 4)]
    right = [[row, column + 9] for row in range(3) for column in (3, 4, 5)]
    crumb = [[9, 20]]  # too small for a section
    cells = np.array(sorted([*left, *right, *crumb]))
    lake.committer.commit_slides([cut(lake, number, "s", {0.5: cells}, pixels=False, side_px=512)])
    lake = add_teacher(lake.refreshed(), "conch15", 24)
    encoded = encode(lake.uri, "mean", features=["conch15"], by="section")
    assert (encoded.name, encoded.encoded) == ("mean.conch15.section", 2)
    frame = lake.refreshed().slide_features("mean.conch15.section").collect()
    assert frame.select("slide_id", "section", "tiles").rows() == [("s", 0, 12), ("s", 1, 10)]
    bag = lake.bag("s", "conch15")
    in_left = bag.x // 512 < 8
    for vector, where in zip(frame["vector"].to_numpy(), (in_left, ~in_left), strict=True):
        wanted = bag.features[where].astype(np.float64).mean(axis=0)
        assert np.allclose(vector, wanted, atol=1e-6)
    vectors, slide = lake.refreshed().encoded("mean.conch15.section", mpp=0.5).rows_of(["s"])
    assert (vectors.shape, slide.tolist()) == ((2, 24), [0, 0])  # a bag of two rows
    assert encode(lake.uri, "mean", features=["conch15"], by="section").encoded == 0


class Interrupted(Mean):
    """A network that is stopped at its second slide."""

    calls = 0

    def forward(self, x_ND: torch.Tensor, places_N2: torch.Tensor) -> torch.Tensor:
        Interrupted.calls += 1
        if Interrupted.calls == 2:
            raise KeyboardInterrupt
        return super().forward(x_ND, places_N2)


def test_a_run_goes_on_where_it_was_stopped(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_run, "COMMIT_S", 0.0)
    monkeypatch.setattr("ingest.slide_encoders.networks.pooling.Mean", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(lake.uri, "mean", features=["conch15"])
    assert list(vectors_of(lake, "mean.conch15")) == ["a"]
    encoded = encode(lake.uri, "mean", features=["conch15"])
    assert (encoded.encoded, encoded.vectors) == (2, 3)
    assert encode(lake.uri, "mean", features=["conch15"]).encoded == 0


def test_slides_without_features_wait(lake: Lake) -> None:
    numbers = register(lake, ["d"])
    lake.committer.commit_slides(
        [cut(lake, numbers["d"], "d", {0.5: row_of_cells(4)}, pixels=False, side_px=SIDE)]
    )
    encoded = encode(lake.uri, "mean", features=["conch15"])
    assert (encoded.encoded, encoded.waiting) == (3, ["d"])
    add_teacher(lake.refreshed(), "conch15", 24)
    assert encode(lake.uri, "mean", features=["conch15"]).encoded == 1


def test_other_tiles_are_refused_with_what_would_be_fed(tmp_path: Path, weights: Path) -> None:
    lake = make_lake(tmp_path / "small-tiles", 256, "uni2_h", 24)
    with pytest.raises(
        SlideEncoderError,
        match=r"titan was trained on conch15 of 512 px at 0\.5 mpp; it would be fed features "
        r"uni2_h, not conch15; 256 px at 0\.5 mpp\. .* --any-inputs",
    ):
        encode(lake.uri, "titan", features=["uni2_h"], weights=str(weights))
    encoded = encode(lake.uri, "titan", features=["uni2_h"], weights=str(weights), any_inputs=True)
    assert encoded.differences == ["features uni2_h, not conch15", "256 px at 0.5 mpp"]
    [encoding] = lake.refreshed().slide_encodings()
    assert encoding.identity["differences"] == encoded.differences


def test_a_column_says_what_its_encoder_saw(tmp_path: Path, weights: Path) -> None:
    """A row of 256 px at 1.0 mpp whose features are of 512 px at 0.5 mpp is a tile of TITAN."""
    lake = create_lake(tmp_path / "regions", LakeConfig(tile_px=256, mpps=(1.0,)))
    [number] = register(lake, ["s"]).values()
    cells = {1.0: row_of_cells(7)}
    lake.committer.commit_slides([cut(lake, number, "s", cells, pixels=False, side_px=512)])
    identity = {"weights": "1", "fov": {"px": 512, "mpp": 0.5}}
    field = lake.committer.add_teacher(1.0, "conch15", 24, identity)
    writer = ColumnWriter(lake.store, 1.0, field, 0)
    keys = lake.refreshed().tiles(mpp=1.0).collect()["tile_id"].to_numpy()
    writer.add(number, keys, np.random.default_rng(0).normal(size=(7, 24)).astype(np.float32))
    lake.committer.commit_columns(1.0, [writer.finish()])
    encoded = encode(lake.uri, "titan", features=["conch15"], weights=str(weights))
    assert (encoded.encoded, encoded.differences) == (1, [])
    x, xy = rows_of(lake.refreshed(), "s", "conch15")
    wanted = titan_formula(x, xy, SIDE, doubles(titan_weights()), heads=6)
    assert np.allclose(vectors_of(lake, "titan.conch15")["s"], wanted, atol=1e-4)


REFUSED = {
    "unknown": ("titn", ["conch15"], "no slide encoder 'titn': did you mean titan"),
    "twice": ("mean", ["conch15", "conch15"], "name a column, each once"),
    "no weights": ("titan", ["conch15"], "the weights of titan are not on this machine"),
    "no statistics": ("pca", ["conch15"], "slidelake stats LAKE --teacher conch15"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused(lake: Lake, case: str) -> None:
    encoder, columns, message = REFUSED[case]
    with pytest.raises(SlideEncoderError, match=message):
        encode(lake.uri, encoder, features=columns)


def test_another_width_or_other_weights_are_refused(lake: Lake, weights: Path) -> None:
    narrow = add_teacher(lake, "narrow", 6)
    with pytest.raises(SlideEncoderError, match="with 24 numbers a tile; narrow has 6"):
        encode(narrow.uri, "titan", features=["narrow"], any_inputs=True)
    encode(lake.uri, "titan", features=["conch15"], weights=str(weights))
    other = {name: x + 1 for name, x in titan_weights().items()}
    save_file(other, weights / "titan.safetensors")
    with pytest.raises(IdentityError, match=r"differs in: weights_sha256"):
        encode(lake.uri, "titan", features=["conch15"], weights=str(weights))
    save_file({"norm.weight": torch.zeros(24)}, weights / "titan.safetensors")
    drop(open_lake(lake.uri), "encoding", ["titan.conch15"])
    with pytest.raises(SlideEncoderError, match="does not hold the weights of titan"):
        encode(lake.uri, "titan", features=["conch15"], weights=str(weights))


def test_a_slide_that_fails_is_told_and_the_others_are_encoded(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Infinite(Mean):
        """A network that can't encode a single tile."""

        def forward(self, x_ND: torch.Tensor, places_N2: torch.Tensor) -> torch.Tensor:
            return super().forward(x_ND, places_N2) / (len(x_ND) > 1)

    monkeypatch.setattr("ingest.slide_encoders.networks.pooling.Mean", Infinite)
    encoded = encode(lake.uri, "mean", features=["conch15"])
    assert encoded.encoded == 2
    assert [one["name"] for one in encoded.failed] == ["c"]
    assert "not finite" in encoded.failed[0]["reason"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A slide encoder of a user's own."""
    return Path(shutil.copy(ROOT / "examples" / "own_slide_encoder.py", tmp_path / "own.py"))


def test_a_users_own_encoder(lake: Lake, own: Path, tmp_path: Path, capsys: Output) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "theirs.py").write_text("SCALE = 2\n")
    places = {"lake": lake.uri, "own": own, "code": code}
    answer = OWN_LINE.run(capsys, places)
    assert "own.mine at mpp 0.5: 2 patients encoded" in answer.stdout
    x = np.concatenate([rows_of(lake, slide, "conch15")[0].numpy() for slide in ("a", "b")])
    wanted = np.concatenate([x.mean(axis=0), x.std(axis=0)])
    assert np.allclose(vectors_of(lake, "own.mine")["p"], wanted, atol=1e-5)
    (code / "theirs.py").write_text("SCALE = 3\n")
    again = OWN_LINE.run(capsys, places, code=2)
    assert "differs in: code_sha256" in again.stderr
    DROP_LINE.run(capsys, places)
    assert not lake.refreshed().slide_encodings()


def test_a_file_that_is_no_encoder_is_refused(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "nothing.py"
    path.write_text("x = 1\n")
    with pytest.raises(SlideEncoderError, match=r"must define CARD, a slidelake\.SlideCard"):
        encode(lake.uri, str(path), features=["conch15"])
