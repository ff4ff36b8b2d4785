"""What a teacher's licence forbids is told, refused, and carried on to its students."""

import json
from pathlib import Path

import pytest

from distill.recipes.recipe_table import make_recipe
from distill.students.export import export_student
from distill.students.student import student_card
from distill.train.distill_run import plan_run
from featurestore import Lake, drop, open_lake, rename
from featurestore.codecs.lance_quantising import quantise
from featurestore.errors import LicenceError
from featurestore.interop import Sharing, export_folder
from featurestore.licences import Licence, check_licences
from ingest import CARDS, column_licences
from ingest.teachers.cards.card import card_from_json, card_json
from tests.conftest import TEACHERS
from tests.worlds.small_lake import add_teacher, write_columns

STRICT = Licence(text="Lab only", forbids=("training on outputs", "sharing outputs"))


@pytest.fixture
def strict(lake_copy: Path) -> Lake:
    """A lake with a column whose licence forbids to train on it and to pass it on."""
    lake = open_lake(lake_copy)
    for mpp in lake.config.mpps:
        lake.committer.add_teacher(mpp, "strict", 4, {"weights": "strict"}, STRICT)
    return lake.refreshed()


def test_a_column_keeps_its_licence_and_an_old_one_has_that_of_its_card(small: Lake) -> None:
    small.committer.add_teacher(0.5, "strict", 4, {"weights": "strict"}, STRICT)
    small.committer.add_teacher(0.5, "uni2_h", 4, {"weights": "imported"})
    lake = small.refreshed()
    licences = column_licences(lake, ["strict", "uni2_h"])
    assert licences == {"strict": STRICT, "uni2_h": CARDS["uni2_h"].terms}
    assert lake.licence("uni2_h", mpp=0.5) is None
    assert column_licences(lake, ["nobody"]) == {"nobody": Licence(text="not stated")}


def test_codes_of_a_column_have_its_licence(small: Lake) -> None:
    add_teacher(small, "t")
    for mpp in small.config.mpps:
        small.committer.add_teacher(mpp, "strict", 6, {"weights": "strict"}, STRICT)
        small.committer.commit_columns(mpp, write_columns(small, mpp, "strict"))
    quantise(small.refreshed(), "strict")
    drop(small.refreshed(), "teacher", ["strict"])
    lake = small.refreshed()
    assert "strict" not in lake.teachers(mpp=0.5)
    assert column_licences(lake, ["strict~int8"]) == {"strict~int8": STRICT}
    with pytest.raises(LicenceError, match="training on outputs is forbidden"):
        plan_run(lake, make_recipe("agglomerate", ("strict~int8",)), student="small")


def test_distill_is_refused_where_a_licence_forbids_training(strict: Lake) -> None:
    recipe = make_recipe("agglomerate", ("strict",))
    words = r"training on outputs is forbidden by the licence of strict \(strict: Lab only .*TEXT"
    with pytest.raises(LicenceError, match=words):
        plan_run(strict, recipe, student="small")
    run = plan_run(strict, recipe, student="small", permission="the lab, on Monday")
    assert run.to_json()["permission"] == "the lab, on Monday"
    assert run.to_json()["licences"] == {"strict": STRICT.to_json()}
    other = plan_run(strict, recipe, student="small", permission="the lab, on Tuesday")
    assert other.run == run.run, "words on a permission change no number, so they name no new run"


def test_a_student_forbids_what_any_of_its_teachers_forbids() -> None:
    licences = {name: CARDS[name].terms for name in ("gigapath", "uni2_h", "resnet50")}
    card = student_card(
        make_recipe("agglomerate", tuple(licences)), "small", 8, licences, mpps=(0.5,)
    )
    assert card.forbids == ("commercial use", "sharing derivatives", "sharing students")
    assert card.licence.endswith("resnet50: BSD-3-Clause")
    assert card_from_json(json.loads(card_json(card))) == card


def test_a_student_under_its_teachers_licence_is_not_passed_on(
    lake_copy: Path, tmp_path: Path
) -> None:
    lake = open_lake(lake_copy)
    card = student_card(
        make_recipe("agglomerate", TEACHERS), "small", 8, {"uni": CARDS["uni"].terms}, mpps=(0.5,)
    )
    lake.write_bytes("students/small/card.json", card_json(card))
    lake.write_json("students/small/report.json", {"student": "small"})
    with pytest.raises(LicenceError, match="sharing students is forbidden by the licence of small"):
        export_student(lake.uri, "small", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_export_says_the_licences_and_refuses_outputs_that_stay(
    strict: Lake, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(LicenceError, match="sharing outputs is forbidden by the licence of strict"):
        export_folder(strict.uri, out, format="stamp", mpp=0.5, teachers=["strict"])
    assert not out.exists()
    other = export_folder(strict.uri, out, format="stamp", mpp=0.5, teachers=[TEACHERS[0]])
    assert list(other.licences) == [TEACHERS[0]]
    words = "the lab, on Monday"
    sharing = Sharing(permission=words)
    export_folder(strict.uri, out, format="stamp", mpp=0.5, teachers=["strict"], sharing=sharing)
    kept = json.loads((out / "licences.json").read_text())
    assert kept["permission"] == words
    # What an earlier export wrote is there still, so its licence is.
    assert kept["licences"] == {
        TEACHERS[0]: other.licences[TEACHERS[0]].to_json(),
        "strict": STRICT.to_json(),
    }


def test_a_permission_of_blanks_is_none() -> None:
    with pytest.raises(LicenceError, match="--i-have-permission needs a text"):
        check_licences({}, "sharing outputs", permission="  ")


def test_a_licence_stays_with_a_renamed_column(strict: Lake) -> None:
    rename(strict, "strict", "still_strict")
    assert open_lake(strict.uri).licence("still_strict", mpp=0.5) == STRICT
