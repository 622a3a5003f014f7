import json
import shutil

import numpy as np
import pytest

from prenorm.errors import DataError
from prenorm.training.data.arrays import ArrayWriter
from prenorm.training.data.folder import FILES_FILE, is_folder_of_tokens, read_folder, read_summary, signed
from prenorm.training.data.prepare import prepare

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of the tokens of lines and of conversations."""
    root = tmp_path_factory.mktemp("made")
    lines = [{"text": f"text {number}"} for number in range(60)] + [{"messages": [*TALK, *TALK]}] * 2
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare(
        root / "tokens",
        [str(root / "t.jsonl")],
        tokenizer="",
        vocab_size=270,
        sample_mb=1,
        one_in=5,
        weights=(),
        say=lambda _: None,
    )
    return root / "tokens"


@pytest.fixture
def copy(made, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(made, tmp_path / "tokens")


def rewrite(folder, name, change):
    """Change an array and everything that says what it must be, as a program with a fault would have written it."""
    array = np.load(folder / name)
    change(array)
    (folder / name).unlink()
    with ArrayWriter(folder / name, array.dtype) as writer:
        writer.append(array)
        record = writer.close()
    summary = read_summary(folder)
    summary.pop("sha256")
    summary["arrays"][name] = record._asdict()
    (folder / "data.json").write_text(json.dumps(signed(summary)))


def test_a_folder_is_read_as_it_was_written(made):
    folder = read_folder(made)
    assert is_folder_of_tokens(made)
    assert len(folder.train.starts) + len(folder.heldout.starts) - 2 == 62
    assert folder.summary["read"]["documents"] == 62
    assert folder.summary["reply_ends"] == [0]
    assert json.loads((made / FILES_FILE).read_text())[0][0].endswith("t.jsonl")


@pytest.mark.parametrize("side", ["train", "heldout"])
@pytest.mark.parametrize("what", ["00000", "starts", "documents", "unscored"])
def test_every_array_is_checked(copy, side, what):
    path = copy / f"{side}-{what}.npy"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=f"{side}-{what}.npy goes on to byte"):
        read_folder(copy)


@pytest.mark.parametrize("name", ["data.json", "files.json", "tokenizer.json", "tokenizer_config.json"])
def test_every_other_file_is_checked(copy, name):
    text = (copy / name).read_text()
    place = next(place for place, character in enumerate(text) if character.isalnum() and place > 9)
    (copy / name).write_text(text[:place] + ("y" if text[place] == "x" else "x") + text[place + 1 :])
    with pytest.raises(DataError, match=rf"{name.replace('.', '[.]')}"):
        read_folder(copy)
    (copy / name).unlink()
    with pytest.raises(DataError, match=rf"{name.replace('.', '[.]')} cannot be read"):
        read_folder(copy)


def test_a_token_id_out_of_range_is_named_with_its_byte(copy):
    def change(tokens):
        tokens[7] = 60_000

    rewrite(copy, "train-00000.npy", change)
    with pytest.raises(
        DataError, match=r"train-00000.npy must have token ids below \d+, .* but has 60,000 at byte 142;"
    ):
        read_folder(copy)


def test_an_empty_document_is_named_with_the_byte_where_it_is_said(copy):
    def change(starts):
        starts[3] = starts[2] + 1

    rewrite(copy, "train-starts.npy", change)
    with pytest.raises(DataError, match=r"train-starts.npy .* document 2 has none: the next begins at byte 152;"):
        read_folder(copy)


def test_starts_that_do_not_span_the_tokens_are_named(copy):
    def change(starts):
        starts[-1] += 5

    rewrite(copy, "train-starts.npy", change)
    with pytest.raises(DataError, match="must go from 0 to the last token"):
        read_folder(copy)


def test_a_folder_of_another_version_is_refused(copy):
    summary = read_summary(copy)
    summary.pop("sha256")
    (copy / "data.json").write_text(json.dumps(signed({**summary, "format": 99})))
    with pytest.raises(DataError, match="must be of format 2, not 99"):
        read_folder(copy)


def test_a_folder_that_has_a_file_called_data_json_is_no_folder_of_tokens(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    assert not is_folder_of_tokens(tmp_path)
