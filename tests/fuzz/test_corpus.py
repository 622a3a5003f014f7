"""The inputs that fuzzing kept: each of them still gives a model, or an error of ours."""

import sys
from pathlib import Path

import pytest

from prenorm.errors import PrenormError

from .targets import TARGETS, fuzz_header

CORPUS = Path(__file__).with_name("corpus")


@pytest.mark.skipif(sys.platform == "win32", reason="the folders have named pipes and links")
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("shapes_unchecked")  # whose checker answers before our own errors
def test_kept_inputs_open_or_are_refused_by_an_error_of_ours(name, tmp_path):
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) > 1
    for path in inputs:
        TARGETS[name](path.read_bytes(), tmp_path / "folder")


def test_an_error_that_is_not_ours_would_be_noticed(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyError("model.norm.weight")

    monkeypatch.setattr("tests.fuzz.opening.load", broken)
    with pytest.raises(KeyError):
        fuzz_header(b"", tmp_path / "folder")
    assert not issubclass(KeyError, PrenormError)
