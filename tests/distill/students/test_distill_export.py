"""A student leaves the lake: plain timm and ONNX Runtime give what `extract` gives."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.errors import DistillError
from distill.recipes.recipe_table import make_recipe
from distill.students.export import export_student
from distill.students.saved_student import write_student
from distill.students.student_table import make_task
from distill.targets.kept_norms import blank_norms
from featurestore import Lake, open_lake
from ingest import TeacherError, find_teachers, load_encoder
from ingest.teachers import timm_code
from tests.conftest import TEACHERS

NAME = "tiny"


#: Code of README.md's blocks, in a process that may not import slidelake: what it is for has none.
SCRIPT = """
import importlib.abc, os, re, sys
import numpy as np

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OURS}:
            raise ImportError(f"{{name}} is slidelake's")

sys.meta_path.insert(0, Refusing())
for folder in sys.argv[1:]:
    os.chdir(folder)
    readme = open("README.md").read()
    for number, code in enumerate(re.findall(r"```python\\n(.*?)```", readme, re.DOTALL)):
        scope = {{}}
        exec(code.replace("tile.jpg", "tile.png"), scope)
        np.save(f"by-code-{{number}}.npy", np.asarray(scope["embedding"]))
""".format(
    OURS={"cluster", "commands", "distill", "downstream", "featurestore", "ingest", "slidelake"}
)
STUDENTS: dict[str, dict[str, Any]] = {
    NAME: {"architecture": "test_efficientnet", "input_px": 64},
    "vit": {
        "architecture": "vit_tiny_patch16_224",
        "input_px": 128,
        "arguments": {"depth": 1, "embed_dim": 48, "qkv_bias": False, "act_layer": "SiLU"},
    },
    "swin": {
        "architecture": "swin_tiny_patch4_window7_224",
        "input_px": 64,
        "arguments": {"embed_dim": 12, "depths": [1, 1, 1], "num_heads": [1, 2, 4]},
    },
}


def add_student(
    lake: Lake, name: str, settings: dict[str, Any], initial: Mapping[str, Any] | None = None
) -> None:
    """Add a student of random weights."""
    recipe = make_recipe("agglomerate", TEACHERS, **settings)
    dims = lake.teachers(mpp=2.0)
    # Weights are random, and targets are no part of a student: their statistics may be blank.
    norms = blank_norms("phi-s", {name: dims[name] for name in TEACHERS}, lake.config.mpps)
    task = make_task(lake, recipe, norms)
    report = {
        "student": name,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in task.student.parameters()),
        "fidelity": {teacher: {"cosine": 0.5, "baseline": 0.25} for teacher in TEACHERS},
    }
    write_student(
        lake,
        task.eval(),
        report,
        name=name,
        recipe=recipe,
        identities={},
        initial=initial or {},
    )


@pytest.fixture
def student(lake_copy: Path) -> Lake:
    """A lake with a student of random weights."""
    lake = open_lake(lake_copy)
    add_student(lake, NAME, STUDENTS[NAME])
    return lake


def check_code(lake: Lake, names: Sequence[str], folder: Path, *, onnx: bool) -> None:
    """Compare what the code of each README gives with what `extract` gives."""
    (batch,) = lake.stream(
        [], mpp=2.0, pixels="uint8", shuffle=False, batch_tiles=1000, under={0.5: TEACHERS[:1]}
    )
    assert batch.pixels is not None
    for name in names:
        export_student(lake.uri, name, str(folder / name), onnx=onnx)
        Image.fromarray(batch.pixels[3]).save(folder / name / "tile.png")
    places = [str(folder / name) for name in names]
    subprocess.run([sys.executable, "-c", SCRIPT, *places], check=True, cwd=folder)
    for name in names:
        (teacher,) = find_teachers(lake.store, [name])
        encoder = load_encoder(lake.store, teacher)
        expected = encoder(batch.pixels[3:4], batch.tile_id[3:4], teacher.outputs)[name]
        by_timm = np.load(folder / name / "by-code-0.npy")
        np.testing.assert_allclose(by_timm, expected, rtol=1e-4, atol=1e-5)
        if onnx:
            # PIL resizes in place of torch: some pixels differ by a grey level.
            by_onnx = np.load(folder / name / "by-code-1.npy")
            assert np.abs(by_onnx - expected).max() < 0.02 * expected.std(), name


@pytest.mark.slow
def test_code_of_the_readme_gives_the_numbers_of_extract(student: Lake, tmp_path: Path) -> None:
    check_code(student, [NAME], tmp_path, onnx=True)
    out = tmp_path / NAME
    names = {"README.md", "card.json", "model.onnx", "model.safetensors", "report.json"}
    assert names <= {path.name for path in out.iterdir()}
    readme = (out / "README.md").read_text()
    for name in TEACHERS:
        assert f"- {name}: not stated by the weights' package" in readme
    assert json.loads((out / "card.json").read_text())["mpps"] == [0.5, 2.0]


@pytest.mark.slow
def test_code_of_students_of_a_fixed_size_gives_the_numbers_of_extract(
    lake_copy: Path, tmp_path: Path
) -> None:
    """Vision transformers and Swin at another size than their own, with arguments of all types."""
    lake = open_lake(lake_copy)
    for name in ("vit", "swin"):
        add_student(lake, name, STUDENTS[name])
    check_code(lake, ["vit", "swin"], tmp_path, onnx=False)
    readme = (tmp_path / "vit" / "README.md").read_text()
    assert "img_size=128, depth=1, embed_dim=48, qkv_bias=False, act_layer=torch.nn.SiLU" in readme


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_onnx_of_students_of_a_fixed_size_gives_the_numbers_of_extract(
    lake_copy: Path, tmp_path: Path, name: str
) -> None:
    lake = open_lake(lake_copy)
    add_student(lake, name, STUDENTS[name])
    check_code(lake, [name], tmp_path, onnx=True)


def test_a_network_of_our_own_has_no_code_of_timm() -> None:
    with pytest.raises(TeacherError, match="timm has no network 'ctranspath'"):
        timm_code("ctranspath", 224, {})


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
