import hashlib
import json
import random
import shlex
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from prenorm import EncoderDecoder, EncoderDecoderConfig, TransformerLM
from prenorm.checkpoint import manifest, sums
from prenorm.checkpoint.files import json_content
from prenorm.checkpoint.folder import load, save
from prenorm.checkpoint.manifest import MANIFEST, accept, read_manifest
from prenorm.checkpoint.verified import verified
from prenorm.cli.main import main
from prenorm.errors import CheckpointError
from prenorm.training.checkpoints import latest_checkpoint, read_parts, read_state, save_checkpoint
from prenorm.training.config import TrainConfig

from .examples import config, equal, tensors_of, without_manifest


@pytest.fixture
def saved(tmp_path):
    """A folder with a small Llama and its settings for generate()."""
    folder = tmp_path / "a model"
    folder.mkdir()
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    save(folder, config(), tensors_of(config()), eos_token_ids=(3,))
    return folder


@pytest.fixture(params=["small", "large", "blocks"])
def _size(request, monkeypatch):
    """Small files are hashed before anything is read, large ones meanwhile, those with blocks by several threads."""
    if request.param != "small":
        monkeypatch.setattr(manifest, "SMALL", 0)
    if request.param == "blocks":
        request.getfixturevalue("_small_blocks")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_manifest_has_size_and_hash_of_every_file_of_the_save_and_of_itself(saved):
    (saved / "notes.txt").write_text("of somebody else")
    fields = json.loads((saved / MANIFEST).read_text())
    own = fields.pop("sha256")
    assert own == hashlib.sha256(json_content(fields)).hexdigest()
    assert list(fields["files"]) == ["model.safetensors", "config.json", "generation_config.json"]
    for name, listed in fields["files"].items():
        data = (saved / name).read_bytes()
        assert listed == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.usefixtures("_size")
def test_a_changed_file_is_refused_by_name_with_the_command_that_accepts_it(saved, capsys):
    edit(saved / "config.json", max_position_embeddings=128)
    (saved / "generation_config.json").unlink()
    with pytest.raises(CheckpointError) as refused:
        load(saved)
    size = len((saved / "config.json").read_bytes())
    assert f"{saved / 'config.json'} has {size} bytes instead of" in str(refused.value)
    assert f"{saved / 'generation_config.json'} is missing" in str(refused.value)
    assert "model.safetensors" not in str(refused.value)
    command = str(refused.value).split("`")[1]
    assert shlex.split(command) == ["prenorm", "accept", str(saved)]
    assert main(shlex.split(command)[1:]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["generation_config.json is gone", "config.json has changed", f"{saved} is taken as it is."]
    assert load(saved).config == config(max_seq_len=128)
    assert main(shlex.split(command)[1:]) == 0
    assert "nothing had changed" in capsys.readouterr().out


def test_what_the_manifest_does_not_list_is_ignored_and_without_one_the_folder_opens(saved):
    (saved / "tokenizer.json").write_text("?")
    (saved / "loss.png").write_bytes(b"")
    assert equal(load(saved).tensors, tensors_of(config()))
    (saved / MANIFEST).unlink()
    edit(saved / "config.json", max_position_embeddings=128)
    assert load(saved).config == config(max_seq_len=128)


@pytest.mark.parametrize("shard_size", ["5GB", "8KB"])
def test_transformers_opens_the_folder_as_before_and_what_it_saves_there_is_taken_when_accepted(saved, shard_size):
    with_it = AutoModelForCausalLM.from_pretrained(saved)
    without_it = AutoModelForCausalLM.from_pretrained(without_manifest(saved))
    assert equal(with_it.state_dict(), without_it.state_dict())
    save(saved, config(), tensors_of(config()), eos_token_ids=(3,))
    torch.nn.init.ones_(with_it.lm_head.weight)
    with_it.save_pretrained(saved, max_shard_size=shard_size)
    with pytest.raises(CheckpointError, match=r"config\.json has .* bytes instead of .*prenorm accept"):
        load(saved)
    if shard_size == "8KB":  # transformers leaves the other file beside its shards
        with pytest.raises(CheckpointError, match=r"holds weights twice.*; delete those that are not meant"):
            accept(saved)
        (saved / "model.safetensors").unlink()
    accept(saved)
    assert torch.equal(load(saved).tensors["lm_head.weight"], torch.ones(61, 24))
    shards = {path.name for path in saved.glob("*.safetensors*")}
    assert shards <= set(read_manifest(saved))


def test_a_save_over_damaged_files_makes_the_folder_whole(saved):
    (saved / "model.safetensors").write_bytes(b"")
    (saved / MANIFEST).write_bytes(b"{")
    save(saved, config(), tensors_of(config(), seed=1))
    assert equal(load(saved).tensors, tensors_of(config(), seed=1))


@pytest.fixture
def _small_blocks(monkeypatch):
    """Every file has blocks, of two rows, two in a task."""
    monkeypatch.setattr(manifest, "SMALL", 0)
    monkeypatch.setattr(sums, "BLOCK", 8192)
    monkeypatch.setattr(sums, "BLOCKS_OF_A_TASK", 2)


@pytest.mark.usefixtures("_small_blocks")
def test_a_large_file_has_sums_of_each_block_and_a_damaged_block_is_named(tmp_path):
    save(tmp_path, config(), tensors_of(config()))
    path = tmp_path / "model.safetensors"
    data, listed = path.read_bytes(), read_manifest(tmp_path)["model.safetensors"]
    blocks = [bytearray(data[place : place + 8192]) for place in range(0, len(data), 8192)]
    assert len(blocks) > 4
    each = [sums.sums_of(memoryview(block.ljust(8192, b"?")), len(block)) for block in blocks]
    assert listed.sums == "".join(each)
    assert listed.sha256 == hashlib.sha256(data).hexdigest()
    load(tmp_path)
    for number in (0, 3, len(blocks) - 1):
        place = min(8192 * number + 200, len(data) - 1)
        path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=rf"other bytes than were saved, from byte {8192 * number:,} on"):
            load(tmp_path)
    twice, last = bytearray(data), len(data) - 1
    twice[8192 + 600] ^= 1
    twice[last] ^= 1
    path.write_bytes(twice)
    with pytest.raises(CheckpointError, match="from byte 8,192 on") as refused:
        load(tmp_path)
    assert str(refused.value).count("model.safetensors") == 1


def test_a_manifest_from_before_there_were_blocks_is_compared_by_sha_256(saved, monkeypatch):
    before = read_manifest(saved)
    assert not any(one.sums for one in before.values())
    monkeypatch.setattr(manifest, "SMALL", 0)
    load(saved)
    assert accept(saved) == []
    assert all(one.sums for one in read_manifest(saved).values())
    assert {name: one[:2] for name, one in read_manifest(saved).items()} == {
        name: one[:2] for name, one in before.items()
    }
    data = (saved / "model.safetensors").read_bytes()
    (saved / MANIFEST).write_bytes(manifest.manifest_content(before))
    (saved / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="another SHA-256"):
        load(saved)


@pytest.mark.usefixtures("_size")
def test_an_error_that_a_damaged_file_leads_to_is_told_as_the_damage(saved):
    weights = saved / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data.replace(b"model.norm.weight", b"model.norn.weight"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors has other bytes than were saved"):
        load(saved)


def test_an_error_of_another_cause_stays_what_it_is(saved, monkeypatch):
    monkeypatch.setattr(manifest, "SMALL", 0)
    with pytest.raises(ZeroDivisionError), verified(saved):
        raise ZeroDivisionError
    assert not any(thread.name.startswith("prenorm-hash") for thread in threading.enumerate())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: data.replace(b"  ", b" \t", 1),
        lambda data: data.replace(b"config.json", b"confih.json", 1),
        lambda data: b"[]",
        lambda data: b'{"files": []}',
        lambda data: b'{"files": {"config.json": 1}}',
        lambda data: b'{"files": {"config.json": {"size": 1e400, "sha256": ""}}}',
        lambda data: b'{"files": {}, "sha256": ""}',
        lambda data: b"\xff",
    ],
)
def test_a_manifest_that_is_not_as_it_was_written_is_refused_and_can_be_made_anew(saved, change):
    path = saved / MANIFEST
    data = path.read_bytes()
    path.write_bytes(change(data))
    with pytest.raises(CheckpointError, match=rf"{MANIFEST} must be as it was written.*prenorm accept"):
        load(saved)
    accept(saved)
    assert path.read_bytes() == data


def test_a_manifest_names_no_file_outside_its_folder(saved):
    (saved.parent / "secret").write_bytes(b"")
    listed = read_manifest(saved)
    (saved / MANIFEST).write_bytes(manifest.manifest_content(listed | {"../secret": listed["config.json"]}))
    with pytest.raises(CheckpointError, match=r"\.\./secret. must be a plain file name inside the folder"):
        load(saved)


def test_a_folder_that_holds_no_model_is_not_accepted(tmp_path):
    with pytest.raises(CheckpointError, match="weights must be in model"):
        accept(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere must be a folder that holds a model or a checkpoint"):
        accept(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def language_model(folder):
    save(folder, config(), tensors_of(config()), eos_token_ids=(3,))
    return folder, lambda: load(folder)


def encoder_decoder(folder):
    EncoderDecoder(EncoderDecoderConfig(11, 8, 1, 2)).save_pretrained(folder)
    return folder, lambda: EncoderDecoder.from_pretrained(folder)


def quantised(folder):
    TransformerLM(config(d_model=32, d_ff=32)).quantize("int4").save_pretrained(folder)
    return folder, lambda: TransformerLM.from_pretrained(folder)


def checkpoint(folder):
    """Of a training, whose parts are opened one after the other."""
    parts = {"model": tensors_of(config()), "optimizer": {"step": torch.tensor(3.0)}}
    save_checkpoint(folder, 3, TrainConfig.from_fields({"preset": "tiny"}), {}, parts, {"scale": 2.0})
    place = latest_checkpoint(folder)
    return place, lambda: read_parts(place, read_state(place).parts)


FOLDERS = (language_model, encoder_decoder, quantised, checkpoint)


@pytest.mark.parametrize("kind", FOLDERS)
def test_flipped_bits_and_cut_files_are_refused_by_name(kind, tmp_path):
    assert_damage_is_refused(*kind(tmp_path), count=40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.usefixtures("_size")
def test_ten_thousand_flipped_bits_and_cut_files_are_refused_by_name(kind, tmp_path):
    assert_damage_is_refused(*kind(tmp_path), count=1_250)


def assert_damage_is_refused(folder, opened, count):
    """A random bit, or everything behind a random byte, of a random file, again and again."""
    opened()
    draw = random.Random(0)
    files = [folder / MANIFEST, *(folder / name for name in read_manifest(folder))]
    for _ in range(count):
        path = draw.choice(files)
        data = path.read_bytes()
        place = draw.randrange(len(data))
        if draw.random() < 0.8:
            damaged = bytearray(data)
            damaged[place] ^= 1 << draw.randrange(8)
        else:
            damaged = data[:place]
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as refused:
            opened()
        assert str(path) in str(refused.value)
        path.write_bytes(data)
    opened()
