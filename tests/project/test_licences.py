"""Licences of what is installed, and which of them are copyleft."""

import json
from pathlib import Path

import pytest

from commands.installation.licence_list import copyleft_of, installed_licences
from tests.conftest import ROOT
from tests.worlds.command_lines import Slidelake


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("MIT", None),
        ("Apache-2.0", None),
        ("GPL-3.0-or-later", "strong"),
        ("GPLv3", "strong"),
        ("AGPL-3.0-only", "strong"),
        ("GNU General Public License v3 (GPLv3)", "strong"),
        ("GNU Lesser General Public License v3 (LGPLv3)", "weak"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "weak"),
        ("MPL-2.0 AND MIT", "weak"),
        ("LGPL-2.1-only", "weak"),
        ("MIT OR GPL-3.0-only", None),
        ("MIT AND (GPL-2.0-only OR BSD-3-Clause)", None),
        ("GPL-3.0-only AND (MIT OR BSD-3-Clause)", "strong"),
        ("GPL-3.0-or-later WITH GCC-exception-3.1 AND BSD-3-Clause", None),
        ("not said", None),
    ],
)
def test_copyleft(licence: str, kind: str | None) -> None:
    assert copyleft_of(licence) == kind


def test_what_is_installed_is_listed_with_what_asks_for_it() -> None:
    rows = {row["package"]: row for row in installed_licences()}
    assert rows["ecos"]["copyleft"] == rows["scikit-survival"]["copyleft"] == "strong"
    assert rows["ecos"]["needed_by"] == "scikit-survival"
    assert rows["scikit-survival"]["needed_by"] == "slidelake"
    assert rows["polars"]["copyleft"] is None
    assert "botocore" in rows  # of aiobotocore, of s3fs
    assert "pytest" not in rows
    assert [name for name, row in rows.items() if row["copyleft"] == "strong"] == [
        "ecos",
        "scikit-survival",
    ]


def test_the_command_prints_them(slidelake: Slidelake) -> None:
    result = slidelake("licences", "--copyleft", "--json")
    rows = json.loads(result.stdout)["packages"]
    assert {"ecos", "scikit-survival"} <= {row["package"] for row in rows}
    assert all(row["copyleft"] for row in rows)
    text = slidelake("licences").stdout
    assert "strong copyleft: ecos, scikit-survival; see docs/licences.md" in text


@pytest.mark.parametrize("name", ["README.md", "docs/licences.md"])
def test_docs_name_what_is_gpl(name: str) -> None:
    text = Path(ROOT / name).read_text()
    assert all(word in text for word in ("GPL-3", "scikit-survival", "ecos", "slidelake licences"))
