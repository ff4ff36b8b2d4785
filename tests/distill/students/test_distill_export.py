"""A student leaves the lake: plain timm and ONNX Runtime give what `extract` gives."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from distill.errors import DistillError
from distill.recipes.recipe_table import make_recipe
from distill.students.export import export_student
from distill.students.saved_student import write_student
from distill.students.student_table import make_task
from distill.targets.missing_stats import fit_missing
from distill.targets.norms import fit_norms, read_norms
from featurestore import Lake, open_lake
from ingest import find_teachers, load_encoder
from tests.conftest import TEACHERS

NAME = "tiny"


@pytest.fixture
def student(lake_copy: Path) -> Lake:
    """A lake with a student of random weights."""
    lake = open_lake(lake_copy)
    recipe = make_recipe("agglomerate", TEACHERS, architecture="test_efficientnet", input_px=64)
    needs, ids = recipe.needs(lake.config.mpps), lake.slides().collect()["slide_id"].to_list()
    fit_missing(lake, needs, ids)
    task = make_task(lake, recipe, read_norms(fit_norms(lake, recipe.targets, needs, ids)))
    report = {
        "student": NAME,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in task.student.parameters()),
        "fidelity": {name: {"cosine": 0.5, "baseline": 0.25} for name in TEACHERS},
    }
    write_student(lake, task.eval(), report, name=NAME, recipe=recipe, identities={})
    return lake


def test_code_of_the_readme_gives_the_numbers_of_extract(student: Lake, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = export_student(student.uri, NAME, str(out), onnx=True)
    assert exported["files"] == [
        "README.md",
        "card.json",
        "model.onnx",
        "model.safetensors",
        "report.json",
    ]
    (batch,) = student.stream(
        [], mpp=2.0, pixels="uint8", shuffle=False, batch_tiles=1000, under={0.5: TEACHERS[:1]}
    )
    assert batch.pixels is not None
    Image.fromarray(batch.pixels[3]).save(out / "tile.png")
    readme = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    folder, scope = Path.cwd(), dict[str, Any]()
    os.chdir(out)
    try:
        exec(code.replace("tile.jpg", "tile.png"), scope)
    finally:
        os.chdir(folder)
    (teacher,) = find_teachers(student.store, [NAME])
    encoder = load_encoder(student.store, teacher)
    expected = encoder(batch.pixels[3:4], batch.tile_id[3:4], teacher.outputs)[NAME]
    np.testing.assert_allclose(scope["embedding"], expected, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    normed = (scope["pixels"] / 255 - scope["mean"]) / scope["std"]
    (by_onnx,) = session.run(None, {"x": normed.numpy().astype(np.float32)})
    np.testing.assert_allclose(by_onnx, expected, rtol=1e-3, atol=1e-4)
    for name in TEACHERS:
        assert f"- {name}: not stated by the weights' package" in readme
    assert json.loads((out / "card.json").read_text())["mpps"] == [0.5, 2.0]


def test_a_student_that_can_not_be_exported_is_refused_and_leaves_nothing(
    student: Lake, tmp_path: Path
) -> None:
    with pytest.raises(DistillError, match=r"no finished student 'other'.*there are: tiny"):
        export_student(student.uri, "other", str(tmp_path / "out"))
    (tmp_path / "there").mkdir()
    with pytest.raises(DistillError, match="is there already"):
        export_student(student.uri, NAME, str(tmp_path / "there"))
    student.write_json(f"students/{NAME}/features.json", {})
    with pytest.raises(DistillError, match="sees features of the lake, not pixels"):
        export_student(student.uri, NAME, str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "there"]
