"""Each option of the commands that use Ray, and what it changes that a user can see."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
import ray

from examples.demo import QUICK
from featurestore import fit_stats, free_old_versions, open_lake, read_stats, verify
from ingest import CARDS
from ingest.teachers.weights.weights_files import find_weights
from tests.conftest import REAL_SLIDE, ROOT
from tests.worlds import command_worlds
from tests.worlds.command_lines import Answer, CommandLine, Output, Places, command_line

Run = Callable[..., Answer]

pytestmark = pytest.mark.usefixtures("ray_up")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Return one lake with twelve patients, and a folder for what lines write."""
    folder = tmp_path_factory.mktemp("options")
    return Places(
        {
            "bags": lambda: command_worlds.bags_lake(folder),
            "labels": lambda: command_worlds.labels(folder),
            "subjects": lambda: command_worlds.named_otherwise(folder),
            "pictures": lambda: command_worlds.slide_table(folder),
            "first": lambda: command_worlds.first_slides(folder),
            "classes": lambda: command_worlds.class_table(folder),
            "half": lambda: command_worlds.some_labels(folder, "half", range(8)),
            "rest": lambda: command_worlds.some_labels(folder, "rest", range(8, 12)),
            "task": lambda: command_worlds.task_folder(folder, "tumour"),
            "os_task": lambda: command_worlds.task_folder(folder, "OS"),
            "slide": lambda: REAL_SLIDE,
            "tmp": lambda: folder,
            "ray": lambda: ray.get_runtime_context().gcs_address,
        }
    )


@pytest.fixture
def run(capsys: Output, places: Places) -> Run:
    """Run a line with the places of this module."""

    def run(line: CommandLine, *, code: int | None = 0) -> Answer:
        return line.run(capsys, places, code=code)

    return run


def settings_of(study: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Return the same names from a study, its configuration or the settings in it."""
    settings = {**study["config"]["settings"], **study["config"], **study}
    return {name: settings[name] for name in expected}


# ---------------------------------------------------------------------- MIL and survival

MIL = command_line(
    "mil {bags} --labels {subjects} --slide-table {pictures} --patient-column subject "
    "--slide-column picture --target tumour --task binary --features good+noise --fusion concat "
    "--mpp 0.5 --model abmil --folds 2 --inner 2 --soft-labels 0.5 --pseudo-tiles 2 --epochs 2 "
    "--learning-rate 0.001 --batch-patients 2 --max-tiles 4 --precision bfloat16 --seed 3 "
    "--accuracy 0.8 --guarantee 0.8 --cpus-per-worker 0.5 --gpus-per-worker 0 --at 8 "
    "--patients-from agree --unseen-students --quiet --json"
)
MIL_FEW = command_line(
    "mil {bags} --labels {labels} --target tumour --features good --model linear --model knn "
    "--folds 2 --repeats 2 --seeds 2 --shots 1 --reference 'good / knn' --margin 0.1 --json"
)
MIL_SITES = command_line(
    "mil {bags} --labels {labels} --target tumour --features good --model mean --epochs 1 "
    "--split site --site hospital --tune 1 --json"
)
MIL_EXPERTS = command_line(
    "mil {bags} --labels {subjects} --patient-column subject --target kind --features good "
    "--model mean --epochs 1 --folds 2 --distinct-ids --experts --json"
)
MIL_COVARIATES = command_line(
    "mil {bags} --labels {labels} --target tumour --features good --model linear "
    "--model covariates --covariates months,kind --covariate-fusion gated --folds 2 --json"
)
COX_COVARIATES = command_line(
    "survival {bags} --labels {labels} --time months --event dead --features good "
    "--model covariates --covariates tumour --covariate-fusion late --folds 2 --json"
)
MIL_ORDER = command_line(
    "mil {bags} --labels {labels} --target kind --order B,A,C --features good --model linear "
    "--folds 2 --json"
)
COMPETING = command_line(
    "survival {bags} --labels {labels} --time months --event kind --cause B --censored C "
    "--features good --model mean --head cox --epochs 1 --folds 2 --json"
)
MIL_SPLITS = command_line(
    "mil {bags} --labels {labels} --target tumour --features good --model linear "
    "--splits {tmp}/splits.parquet --json"
)
MIL_TASK = command_line(
    "mil {bags} --task-folder {task} --features good --protocol patho-bench --json"
)
MIL_EXTERNAL = command_line(
    "mil {bags} --labels {half} --test-labels {rest} --target tumour --features good "
    "--model linear --json"
)
COX_TASK = command_line(
    "survival {bags} --task-folder {os_task} --features good --protocol patho-bench --json"
)
COX_EXTERNAL = command_line(
    "survival {bags} --labels {half} --test-labels {rest} --time months --event dead "
    "--features good --json"
)
COX = command_line(
    "survival {bags} --labels {subjects} --slide-table {pictures} --patient-column subject "
    "--slide-column picture --time months --event dead --features good --features noise "
    "--distinct-ids --split site --site hospital --repeats 1 --seeds 2 --reference noise "
    "--margin 0.2 --seed 1 --event-means event --patients-from agree --unseen-students "
    "--mpp 0.5 --at 8 --cpus-per-worker 0.5 --gpus-per-worker 0 --quiet --json"
)
HAZARDS = command_line(
    "survival {bags} --labels {labels} --time months --event dead --features good+noise "
    "--fusion concat --model abmil --head hazards --bins 2 --inner 2 --epochs 2 "
    "--learning-rate 0.001 --batch-patients 2 --max-tiles 4 --precision bfloat16 --tune 1 "
    "--folds 2 --json"
)
COX_SPLITS = command_line(
    "survival {bags} --labels {labels} --time months --event dead --features good "
    "--splits {tmp}/splits.parquet --json"
)
MIL_SET = command_line(
    "mil {bags} --labels {labels} --target tumour --features good --model linear --folds 2 "
    "--set comparison.accuracy=0.7 --set seed=5 --json"
)
MIL_LIKE = command_line("mil {bags} --like {mil_run} --features noise --set seed=6 --json")
MIL_LIKE_COX = command_line("mil {bags} --like {cox_run}")
COX_SET = command_line(
    "survival {bags} --labels {labels} --time months --event dead --features good --folds 2 "
    "--set pooled.components=3 --json"
)
COX_LIKE = command_line("survival {bags} --like {cox_run} --set pooled.alpha=0.5 --json")
PREDICT = command_line(
    "predict {bags} --run {mil_run} --run-lake {bags} --arm good --labels {labels} "
    "--out {tmp}/predicted.csv --at 8 --quiet --json"
)
PREDICT_PAGE = command_line(
    "predict {bags} --run {mil_run} --labels {labels} --unseen-students "
    "--out {tmp}/predicted.html --json"
)
PREDICT_MAPS = command_line("predict {bags} --run {mil_run} --heatmaps {tmp}/maps")
PREDICT_COVARIATES = command_line(
    "predict {bags} --run {covariate_run} --covariates {labels} --json"
)
SET_WRONG = command_line("mil {bags} --like {mil_run} --set fit.epoch=3")


def test_competing_events_are_told_apart(run: Run) -> None:
    study = run(COMPETING).value
    assert study["config"]["causes"] == ["B", "A"]
    assert study["outcomes"]["competing"] == {"A": 4}
    assert set(study["incidence"]["good"]) >= {"at"}


def test_an_order_of_classes_is_kept(run: Run) -> None:
    study = run(MIL_ORDER).value
    assert study["config"]["classes"] == ["B", "A", "C"]
    assert study["metrics"]["good"]["metric"] == "kappa_quadratic"


def test_covariates_are_read_and_asked_for_again(run: Run, places: Places) -> None:
    study = run(MIL_COVARIATES).value
    assert list(study["metrics"]) == ["good / linear", "covariates"]
    expected = {"covariates": ["months", "kind"], "categories": ["kind"],
                "covariate_fusion": "gated"}  # fmt: skip
    assert settings_of(study, expected) == expected
    places["covariate_run"] = study["run"]
    found = run(PREDICT_COVARIATES).value
    assert len(found["patients"]) == study["patients"]
    survival = run(COX_COVARIATES).value
    assert list(survival["metrics"]) == ["covariates"]
    assert survival["config"]["covariates"] == ["tumour"]


def test_mil_trains_with_the_given_settings(run: Run) -> None:
    study = run(MIL).value
    expected = {
        "slides": 12, "task": "binary", "fusion": "concat", "mpps": [0.5], "models": ["abmil"],
        "folds": 2, "inner": 2, "soft_labels": 0.5, "pseudo_tiles": 2, "epochs": 2,
        "learning_rate": 0.001, "batch_patients": 2, "max_tiles": 4, "precision": "bfloat16",
        "seed": 3, "accuracy": 0.8, "lake_version": 8,
    }  # fmt: skip
    assert settings_of(study, expected) == expected
    assert list(study["metrics"]) == ["good+noise"]


def test_mil_of_few_shots_compares_with_its_reference(run: Run, places: Places) -> None:
    study = run(MIL_FEW).value
    (row,) = study["comparisons"]
    assert (row["one"], row["other"], row["margin"]) == ("good / linear", "good / knn", 0.1)
    splits = pl.read_parquet(Path(str(places["bags"]), "runs", study["run"], "splits.parquet"))
    train = splits.filter(pl.col("part") == "train")
    assert set(train.group_by("repeat", "fold").len()["len"]) == {1 + 1}
    assert (study["repeats"], study["seeds"]) == (2, 2)


def test_mil_leaves_one_site_out_and_searches_settings(run: Run, places: Places) -> None:
    study = run(MIL_SITES).value
    assert (study["folds"], study["config"]["search"]) == (2, 1)
    folder = Path(str(places["bags"]), "runs", study["run"])
    assert list(folder.glob("search/*"))
    splits = pl.read_parquet(folder / "splits.parquet").filter(pl.col("part") == "test")
    first = splits.filter(pl.col("fold") == 0)["patient_id"].sort().to_list()
    assert first in ([f"p{p:02d}" for p in range(6)], [f"p{p:02d}" for p in range(6, 12)])


def test_mil_has_experts_for_long_tails(run: Run) -> None:
    study = run(MIL_EXPERTS).value
    assert study["config"]["settings"]["experts"] is True
    assert study["config"]["classes"] == ["A", "B", "a"]


def test_survival_compares_feature_sets(run: Run) -> None:
    study = run(COX).value
    (row,) = study["comparisons"]
    assert (row["one"], row["other"], row["margin"]) == ("good", "noise", 0.2)
    expected = {
        "slides": 12, "folds": 2, "repeats": 1, "seeds": 2, "seed": 1, "lake_version": 8,
        "mpps": [0.5],
    }  # fmt: skip
    assert settings_of(study, expected) == expected


def test_survival_of_bags_trains_with_the_given_settings(run: Run) -> None:
    study = run(HAZARDS).value
    expected = {
        "fusion": "concat", "models": ["abmil"], "head": "hazards", "bins": 2, "inner": 2,
        "epochs": 2, "learning_rate": 0.001, "batch_patients": 2, "max_tiles": 4,
        "precision": "bfloat16", "search": 1, "folds": 2,
    }  # fmt: skip
    assert settings_of(study, expected) == expected


def test_mil_and_survival_take_the_splits_of_another_run(run: Run, places: Places) -> None:
    few = run(MIL_FEW).value["run"]
    splits = Path(str(places["bags"]), "runs", few, "splits.parquet")
    shutil.copy(splits, Path(str(places["tmp"]), "splits.parquet"))
    for line in (MIL_SPLITS, COX_SPLITS):
        study = run(line).value
        assert (study["folds"], study["repeats"]) == (2, 2)
        ours = Path(str(places["bags"]), "runs", study["run"], "splits.parquet")
        assert ours.read_bytes() == splits.read_bytes()


def test_mil_sets_any_field_and_starts_from_another_run(run: Run, places: Places) -> None:
    first = run(MIL_SET).value
    assert settings_of(first, {"accuracy": 0, "seed": 0}) == {"accuracy": 0.7, "seed": 5}
    places["mil_run"] = first["run"]
    second = run(MIL_LIKE).value
    expected = {"accuracy": 0.7, "seed": 6, "models": ["linear"], "folds": 2, "features": ["noise"]}
    assert settings_of(second, expected) == expected
    assert second["run"] != first["run"]
    predicted = run(PREDICT).value
    assert predicted["arm"] == "good"
    assert {row["seen"] for row in predicted["patients"]} == {True}
    measured = predicted["measures"]["seen"]
    assert measured["patients"] == len(predicted["patients"]) == first["patients"]
    assert pl.read_csv(str(places["tmp"]) + "/predicted.csv").height == first["patients"]
    run(PREDICT_PAGE)
    page = Path(str(places["tmp"]), "predicted.html").read_text()
    assert page.count("<tr>") > first["patients"]
    refused = run(PREDICT_MAPS, code=None).stderr  # a linear model looks at no tile
    assert "its models do not weigh tiles" in refused
    refused = run(SET_WRONG, code=2).stderr
    assert "--set fit.epoch: there is no such field; fields are" in refused
    assert "fit.epochs" in refused


def test_tasks_of_patho_bench_run_as_they_are(run: Run) -> None:
    study = run(MIL_TASK).value
    assert (study["folds"], study["config"]["classes"]) == (3, ["wild type", "mutant"])
    assert study["protocol"]["measures"]["good"]["bacc"]["parts"] == 3
    assert run(COX_TASK).value["protocol"]["measures"]["good"]["cindex"]["parts"] == 3


def test_all_patients_of_another_table_are_tested(run: Run) -> None:
    for line in (MIL_EXTERNAL, COX_EXTERNAL):
        study = run(line).value
        assert (study["folds"], study["patients"]) == (1, 12)
        assert any("4 patients of the other table are tested" in one for one in study["notes"])


def test_survival_sets_any_field_and_starts_from_another_run(run: Run, places: Places) -> None:
    first = run(COX_SET).value
    assert first["config"]["pooled"]["components"] == 3
    places["cox_run"] = first["run"]
    second = run(COX_LIKE).value
    pooled = second["config"]["pooled"]
    assert (pooled["components"], pooled["alpha"], second["folds"]) == (3, 0.5, 2)
    assert "the run is of `slidelake survival`" in run(MIL_LIKE_COX, code=2).stderr


# ---------------------------------------------------------------------- slides and teachers

INGEST = command_line("ingest {tmp}/cut {tmp}/in --mpp 2.0 --json")
INGEST_TEXT = command_line("ingest {tmp}/cut {tmp}/in --mpp 2.0")
INGEST_AGAIN = command_line(
    "ingest {tmp}/cut {tmp}/in --only bare --retry-failed --mpp-override 2.0 --quiet --json"
)
INGEST_REPLACE = command_line(
    "ingest {tmp}/cut {tmp}/moved/real.svs --replace --auto-vacuum --json"
)
INGEST_LATE = command_line(
    "ingest {tmp}/late {tmp}/large.tiff --mpp 0.5 --slide-timeout 0.000001 --json"
)


@pytest.fixture
def _few_versions_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an automatic vacuum free all versions but the newest, also those of today."""
    defaults = cast("dict[str, Any]", free_old_versions.__kwdefaults__)
    for name in ("keep", "days"):
        monkeypatch.setitem(defaults, name, 0)
    monkeypatch.setattr("featurestore.keep.lance_vacuum.AUTO_LEAST", 1)


@pytest.mark.usefixtures("_few_versions_stay")
def test_ingest_takes_failed_slides_again_and_another_file(run: Run, places: Places) -> None:
    folder = Path(str(places["tmp"]))
    for name in ("in", "moved"):
        (folder / name).mkdir()
        shutil.copy(REAL_SLIDE, folder / name / "real.svs")
    command_worlds.plain_tiff(folder / "in" / "bare.tiff", mpp=None)
    first = run(INGEST, code=1).value
    assert (first["ready"], [one["slide"] for one in first["failed"]]) == (1, ["bare"])
    assert first["readers"] == {"tiff": 1}
    assert "bare failed: " in run(INGEST_TEXT, code=1).stdout
    again = run(INGEST_AGAIN).value
    assert again["new"] == 1
    with (folder / "moved" / "real.svs").open("ab") as file:
        file.write(b"scanned again")
    replaced = run(INGEST_REPLACE).value
    assert replaced["replaced"] == ["real"]
    assert replaced["freed"]["versions"] > 0
    command_worlds.large_slide(folder / "large.tiff")
    (late,) = run(INGEST_LATE, code=1).value["failed"]
    assert "took longer than" in late["reason"]


DISTILL = command_line(
    "distill {bags} --teacher good --teacher noise --recipe agglomerate --name both --mpp 0.5 "
    "--architecture test_efficientnet --input-px 32 --epochs 1 --batch-tiles 16 --accumulate 2 "
    "--learning-rate 0.002 --targets z-score --head linear --weighting static --term contrast=0.1 "
    "--where 'y >= 0' --per-slide 30 --balance slide --coreset random --share 0.9 "
    "--width 8 --stain 0.1 --ema 0.5 --precision bfloat16 --slides {first} --distinct-ids "
    "--holdout 0.3 --split-seed 2 --seed 4 --device cpu --workers 1 --cpus-per-worker 0.5 "
    "--gpus-per-worker 0 --checkpoint-s 0.01 --at 8 --i-have-permission 'the authors, by letter' "
    "--quiet --json"
)
COMPILE = command_line(
    "distill {bags} --teacher good --name single --architecture test_efficientnet --input-px 32 "
    "--epochs 1 --batch-tiles 16 --slides {first} --holdout 0.3 --split-seed 2 --compile "
    "--init both --json"
)
DISTILL_LIKE = command_line(
    "distill {bags} --like {student_run} --name again --batch-tiles 8 --slides {first} "
    "--set schedule.weight_decay=0.01 --set terms.1.weight=0.2 "
    "--decode scaled --cache-pixels 0.01 --json"
)
EVALUATE = command_line(
    "evaluate {bags} --student both --single single --labels {classes} --label-column side "
    "--distinct-ids --mpp 0.5 --tiles 40 --robust-tiles 2 --teacher-seconds 0 --seed 5 "
    "--site ward --device cpu --threads 1 --cpus-per-worker 1 --gpus-per-worker 0 --at 8 --quiet "
    "--json"
)
EXPORT_STUDENT = command_line(
    "export-student {bags} both {tmp}/exported --onnx --i-have-permission letter --json"
)
EXTRACT_STUDENT = command_line("extract {bags} --teacher both --engine onnxruntime --json")
EXTRACT = command_line(
    "extract {bags} --teacher efficientnet_lite0 --weights {tmp}/weights --mpp 0.5 "
    "--precision bfloat16 --where 'x < 512' --share 0.5 --auto-vacuum --device cpu --workers 1 "
    "--cpus-per-worker 1.5 --gpus-per-worker 0 --quiet --json"
)


@pytest.mark.usefixtures("on_this_machine")
def test_a_student_is_distilled_with_the_given_settings(run: Run, places: Places) -> None:
    report = run(DISTILL).value
    assert (report["student"], set(report["fidelity"])) == ("both", {"good", "noise"})
    folder = Path(str(places["bags"]), "runs", report["run"])
    config = json.loads((folder / "config.json").read_text())
    recipe = config["recipe"]
    kept = json.loads(Path(str(places["bags"]), "students/both/report.json").read_text())
    workers = {"device": "cpu", "workers": 1, "cpus_per_worker": 0.5, "gpus_per_worker": 0.0}
    assert {name: kept[name] for name in workers} == workers
    assert config["permission"] == kept["permission"] == "the authors, by letter"
    assert recipe["schedule"] == {**recipe["schedule"], "epochs": 1, "batch_tiles": 16,
        "accumulate": 2, "learning_rate": 0.002, "precision": "bfloat16"}  # fmt: skip
    expected = {
        "name": "agglomerate",
        "targets": "z-score",
        "head": "linear",
        "weighting": "static",
    }
    assert {name: recipe[name] for name in expected} == expected
    chosen = {"where": "y >= 0", "per_slide": 30, "balance": "slide"}
    chosen |= {"coreset": "random", "share": 0.9}
    assert recipe["tiles"] == {**recipe["tiles"], **chosen}
    assert 0 < kept["tiles"]["0.5"]["chosen"] <= kept["tiles"]["0.5"]["all"]


def test_each_file_of_a_finished_training_is_checked(run: Run, places: Places) -> None:
    folder = Path(str(places["bags"]), "runs", run(DISTILL).value["run"])
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "status.json"]
    assert {path.name for path in files} >= {
        "config.json", "norms.safetensors", "checkpoint.pt", "metrics.jsonl", "curve.png"
    }  # fmt: skip
    lake = open_lake(str(places["bags"]))
    for path in files:
        written = path.read_bytes()
        middle = len(written) // 2
        letters = (at for at in range(middle, len(written)) if chr(written[at]).isalpha())
        at = next(letters, middle)
        path.write_bytes(written[:at] + bytes([written[at] ^ 1]) + written[at + 1 :])
        named = {part.path for part in verify(lake).damage}
        path.write_bytes(written)
        assert str(path.relative_to(folder.parent.parent)) in named
    assert not verify(lake).damage


@pytest.mark.usefixtures("on_this_machine")
def test_a_student_is_distilled_like_another_run(
    run: Run, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIDELAKE_PIXEL_CACHE", str(tmp_path / "pixels"))
    places["student_run"] = run(DISTILL).value["run"]
    report = run(DISTILL_LIKE).value
    recipes = [
        json.loads(Path(str(places["bags"]), "runs", name, "config.json").read_text())["recipe"]
        for name in (str(places["student_run"]), report["run"])
    ]
    first, second = recipes
    first["schedule"] |= {"batch_tiles": 8, "weight_decay": 0.01}
    first["terms"][1]["weight"] = 0.2
    first["student"]["decode"] = "scaled"
    assert second == first
    [kept] = (tmp_path / "pixels").glob("*.pixels")
    assert kept.stat().st_blocks > 0


@pytest.mark.usefixtures("on_this_machine")
def test_a_student_is_compiled_evaluated_and_exported(run: Run, places: Places) -> None:
    run(DISTILL)  # what is done already is not done again
    single = run(COMPILE).value
    folder = Path(str(places["bags"]), "runs", single["run"])
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"]["schedule"]["compile"] is True
    assert (config["initial"]["source"], config["initial"]["parameters"]) == ("both", 1.0)
    judged = run(EVALUATE).value
    assert judged["classes"] == ["S", "s"]
    kinds = {one["kind"]: one["name"] for one in judged["embeddings"]}
    assert kinds["single_teacher"] == "single"
    expected = {
        "tiles": 40, "robust_tiles": 2, "teacher_seconds": 0, "seed": 5, "device": "cpu",
        "threads": 1, "mpps": [0.5], "site": "ward",
    }  # fmt: skip
    assert {name: judged["settings"][name] for name in expected} == expected
    for one in judged["embeddings"]:  # tiles of two sites and two classes
        assert one["sites"]["0.5"]["ri"]["mean"] <= 1
    files = run(EXPORT_STUDENT).value["files"]
    assert "model.onnx" in files
    permission = Path(str(places["tmp"]), "exported", "permission.txt").read_text()
    assert permission == "letter\n"
    run(EXTRACT_STUDENT)
    lake = open_lake(Path(str(places["bags"])))
    assert lake.identity("both", mpp=0.5)["engine"] == "onnxruntime"


@pytest.mark.usefixtures("_few_versions_stay")
def test_extract_takes_some_tiles_and_the_weights_of_a_folder(run: Run, places: Places) -> None:
    folder = Path(str(places["tmp"])) / "weights"
    folder.mkdir()
    weights = find_weights(CARDS["efficientnet_lite0"])
    assert weights is not None
    shutil.copy(weights, folder / "efficientnet_lite0.pth")
    extracted = run(EXTRACT).value
    assert extracted["freed"]["versions"] > 0
    assert extracted["workers"] == {"device": "cpu", "workers": 1, "cpus_per_worker": 1.5,
        "gpus_per_worker": 0.0}  # fmt: skip
    counts = extracted["teachers"]["efficientnet_lite0"]
    lake = open_lake(Path(str(places["bags"])))
    tiles = lake.tiles(mpp=0.5).filter(pl.col("x") < 512).collect().height
    assert 0.2 * tiles < counts["tiles"] < 0.8 * tiles
    identity = lake.identity("efficientnet_lite0", mpp=0.5)
    expected = {"where": "x < 512", "share": 0.5, "precision": "bfloat16"}
    assert {name: identity[name] for name in expected} == expected


# ---------------------------------------------------------------------- another Ray

NOWHERE = "--address 127.0.0.1:1"
TINY = "--architecture test_efficientnet --input-px 32"
ELSEWHERE = [
    command_line(f"ingest {{tmp}}/away {{slide}} --mpp 2.0 {NOWHERE}"),
    command_line(f"extract {{bags}} --teacher efficientnet_lite1 {NOWHERE}"),
    command_line(f"build {{tmp}}/away {{slide}} --teacher efficientnet_lite1 --mpp 2.0 {NOWHERE}"),
    command_line(f"distill {{bags}} --teacher good --name away {TINY} {NOWHERE}"),
    command_line(f"evaluate {{bags}} --student both {NOWHERE}"),
    command_line(f"mil {{bags}} --labels {{labels}} --target kras --features good {NOWHERE}"),
    command_line(
        "survival {bags} --labels {labels} --time months --event dead --features good " + NOWHERE
    ),
]
THERE = command_line(
    "mil {bags} --labels {labels} --target kras --features good --model linear --folds 2 "
    "--address {ray} --json"
)
STATS = command_line("stats {bags} --teacher good --mpp 0.5 --tiles 40 --address {ray} --json")
METERED = command_line(
    f"--metrics-port 9 mil {{bags}} --labels {{labels}} --target kras --features good {NOWHERE}"
)
SCRIPT = """
import json, sys, slidelake
for words in json.load(sys.stdin):
    try:
        slidelake.app(words, standalone_mode=False)
    except Exception as error:
        print(error)
"""


def test_each_command_goes_to_the_ray_that_is_named(places: Places) -> None:
    lines = [line.words(places) for line in (*ELSEWHERE, THERE, METERED)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
        timeout=400,
    )
    *refused, answer, metered = done.stdout.strip().splitlines()
    assert len(refused) == len(ELSEWHERE)
    assert all("no Ray answers at 127.0.0.1:1" in line for line in refused)
    assert json.loads(answer)["folds"] == 2
    assert "metrics port 9 was given for the running Ray at 127.0.0.1:1" in metered


# ---------------------------------------------------------------------- the whole way

DEMO = command_line("demo {tmp}/demo --quick --quiet --json")


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("on_this_machine")
def test_the_quick_demo_goes_the_whole_way(run: Run, places: Places) -> None:
    report = run(DEMO).value
    assert {"ingest", "extract", "distill", "mil"} <= set(report["stages"])
    assert report["about"]["cohort"]["patients"] == QUICK.patients
    assert "survival" not in report["stages"]
    page = Path(str(places["tmp"]), "demo", "report.html").read_text()
    assert page.startswith("<!doctype html>")


def test_workers_read_a_sample_for_statistics(run: Run, places: Places) -> None:
    (fitted,) = run(STATS).value["sets"]
    assert (fitted["sample"], fitted["rows"], fitted["new"]) == (40, 40, True)
    lake = open_lake(str(places["bags"]))
    kept = json.loads(lake.read_bytes(f"{fitted['path']}/card.json"))
    here = fit_stats(lake, "good", mpp=0.5, slide_ids=kept["slides"], tiles=40)
    there = read_stats(lake, "good", mpp=0.5, slide_ids=kept["slides"])
    assert there is not None
    assert (here.mean == there.mean).all()
    assert (here.covariance == there.covariance).all()
