import json

import pytest

from prenorm.challenge.progress import OpenQuestion, Planted, Progress, load, save
from prenorm.errors import ConfigError

FULL = Progress(
    build_sha256="ab",
    attempts=2,
    questions=[OpenQuestion(id="width-1", kind="NumbersOut", numbers={"batch": 2})],
    planted=Planted(sha256="cd", salt="s", fault="f", failed_attempts=1),
)


@pytest.mark.parametrize("progress", [Progress(), FULL])
def test_what_is_saved_is_loaded(progress, tmp_path):
    save(progress, tmp_path / "challenge.json")
    assert load(tmp_path / "challenge.json") == progress
    assert [path.name for path in tmp_path.iterdir()] == ["challenge.json"]


def test_an_empty_object_is_a_beginning(tmp_path):
    (tmp_path / "challenge.json").write_text("{}\n")
    assert load(tmp_path / "challenge.json") == Progress()


def test_a_file_that_is_not_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    save(FULL, tmp_path / "challenge.json")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(Progress(), tmp_path / "challenge.json")
    assert load(tmp_path / "challenge.json") == FULL


def test_build_is_passed_only_by_the_file_that_passed(solved):
    from prenorm.challenge.progress import file_hash

    progress = Progress(build_sha256=file_hash(solved.layers))
    assert progress.build_passed(solved.layers)
    solved.layers.write_text(solved.layers.read_text() + "\n")
    assert not progress.build_passed(solved.layers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"attempts": 1,\n,}', r"is not JSON \(line 2: .*write {} into"),
        ("[]", "must hold an object, but it holds a list"),
        ('{"version": 9}', "was written in version 9, but this prenorm reads version 1"),
        ('{"attempt": 1}', "it has 'attempt', which is none of build_sha256"),
        ('{"attempts": "1"}', "attempts is '1', which is no int"),
        ('{"questions": [1]}', "1 stands where an object should"),
        ('{"questions": [{"id": "a"}]}', "kind is missing in {'id': 'a'}"),
        ('{"planted": {"sha256": "a", "fault": "f", "salt": 3}}', "salt is 3, which is no str"),
        ("\xff", "is no UTF-8 text"),
    ],
)
def test_damage_is_told_with_a_way_out(text, message, tmp_path):
    (tmp_path / "challenge.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "challenge.json")


def test_the_file_is_for_reading(tmp_path):
    save(FULL, tmp_path / "challenge.json")
    assert json.loads((tmp_path / "challenge.json").read_text())["version"] == 1
    assert len((tmp_path / "challenge.json").read_text().splitlines()) > 10
