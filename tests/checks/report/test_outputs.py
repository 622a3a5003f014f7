"""The results of a batch in files."""

import csv
import json

import pytest

from prenorm.checks.report.outputs import ENDINGS, check_path, save, written
from prenorm.checks.report.result import Result
from prenorm.errors import ConfigError

from .examples import BAD, GOOD

RESULTS = [Result(name="Zoë", verdict=GOOD), Result(name="bob", verdict=BAD), Result(name="\udcff", verdict=None)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_has_what_its_format_prints(ending, tmp_path):
    file = tmp_path / f"all{ending.upper()}"
    check_path(file, tmp_path / "all")
    save(RESULTS, file, "blocks")
    printed = written(RESULTS, ENDINGS[ending], "blocks")
    assert printed.endswith("\n")
    assert file.read_text(encoding="utf-8-sig") == printed.replace("\udcff", "?")


def test_excel_is_told_the_encoding_and_other_readers_are_not(tmp_path):
    for name in ("all.csv", "all.json"):
        save(RESULTS, tmp_path / name, "blocks")
    with (tmp_path / "all.csv").open(encoding="utf-8-sig", newline="") as file:
        assert next(csv.DictReader(file))["name"] == "Zoë"
    assert (tmp_path / "all.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert json.loads((tmp_path / "all.json").read_text())[0]["name"] == "Zoë"


@pytest.mark.parametrize("name", ["marks.pdf", "marks", "none/marks.csv", "folder.csv", "all/page.html"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_judged(name, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "all").mkdir()
    with pytest.raises(ConfigError, match="--out FILE must"):
        check_path(tmp_path / name, tmp_path / "all")
