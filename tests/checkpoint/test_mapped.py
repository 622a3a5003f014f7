"""Tensors that are views of a large file."""

import dataclasses
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from prenorm import TransformerLM
from prenorm.checkpoint import mapped
from prenorm.checkpoint.files import write_atomically
from prenorm.checkpoint.header import read_header
from prenorm.checkpoint.tensors import read_tensors, tensors_content
from prenorm.errors import CheckpointError

from .families import folder_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from /proc")

TENSORS = {"weight": torch.arange(6000.0).reshape(2, 3000), "bias": torch.ones(3, dtype=torch.bfloat16)}
TENSORS |= {"none": torch.empty(0), "z": torch.tensor(3.0)}


@pytest.fixture(autouse=True)
def _map_all_files(monkeypatch):
    monkeypatch.setattr(mapped, "LEAST", 0)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)


@pytest.fixture
def path(tmp_path):
    write_atomically(tmp_path / "file", tensors_content(TENSORS))
    return tmp_path / "file"


def is_view(tensor, path):
    """Whether the tensor's memory is a mapping of this file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(one, 16) for one in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.endswith(str(path))
    return False


def test_views_have_the_numbers_of_the_file_and_keep_what_is_written_to_them(path):
    before, noted = path.read_bytes(), {}
    read = read_tensors(path, mapped=noted)
    assert all(torch.equal(read[name], tensor) and read[name].shape == tensor.shape for name, tensor in TENSORS.items())
    assert {name for name, tensor in read.items() if is_view(tensor, path)} == {"weight", "bias", "z"}
    assert noted == {path: read_header(path).version}
    with torch.no_grad():
        read["weight"].requires_grad_().mul_(2)
    assert torch.equal(read["weight"], 2 * TENSORS["weight"])
    assert path.read_bytes() == before
    mapped.check_unchanged(noted)
    assert not any(is_view(tensor, path) for tensor in read_tensors(path).values())


def test_tensors_begin_with_a_cache_line_where_their_sizes_allow(path):
    header = read_header(path)
    assert (header.start + header.tensors["weight"].begin) % 64 == 0


def test_a_model_whose_file_was_overwritten_is_neither_used_nor_saved(tmp_path):
    folder = folder_of("llama", tmp_path)
    model, weights = TransformerLM.from_pretrained(folder), folder / "model.safetensors"
    assert all(is_view(parameter, weights) for parameter in model.parameters())
    replies = model.generate([[3]], max_new_tokens=2, temperature=0)
    with weights.open("r+b") as file:
        file.write(b"{" * weights.stat().st_size)
    for use in (
        lambda: model.generate([[3]], max_new_tokens=2, temperature=0),
        lambda: list(model.stream([[3]], max_new_tokens=2)),
        lambda: model.save_pretrained(tmp_path / "again"),
    ):
        with pytest.raises(CheckpointError, match=r"model\.safetensors must stay as it is while a model .* open the"):
            use()
    assert len(replies[0]) == 2


@pytest.mark.parametrize("by", ["our own save", "renaming", "deleting"])
def test_a_file_that_is_replaced_leaves_the_model_as_it_was(tmp_path, by):
    folder = folder_of("llama", tmp_path)
    model, weights = TransformerLM.from_pretrained(folder), folder / "model.safetensors"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    match by:
        case "our own save":
            other = TransformerLM(dataclasses.replace(model.config, vocab_size=50))
            other.save_pretrained(folder)
        case "renaming":
            (tmp_path / "other").write_bytes(b"{" * weights.stat().st_size)
            os.replace(tmp_path / "other", weights)
        case _:
            weights.unlink()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.generate([[3]], max_new_tokens=2)
    model.save_pretrained(tmp_path / "again")


def test_tensors_that_are_split_or_change_their_dtype_are_copies(tmp_path):
    model = TransformerLM.from_pretrained(folder := folder_of("phi3", tmp_path))
    is_one = {name: is_view(tensor, folder / "model.safetensors") for name, tensor in model.named_parameters()}
    assert {name for name, one in is_one.items() if not one} == {
        f"layers.{layer}.{part}.weight"
        for layer in range(3)
        for part in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "ffn.gate_proj", "ffn.up_proj")
    }
    narrow = TransformerLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert not any(is_view(parameter, folder / "model.safetensors") for parameter in narrow.parameters())
    assert narrow.mapped == {}


@pytest.mark.parametrize("why", ["small", "large pages", "odd place"])
def test_files_that_are_better_copied_are(path, why, monkeypatch):
    match why:
        case "small":
            monkeypatch.setattr(mapped, "LEAST", path.stat().st_size + 1)
        case "large pages":
            monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
        case _:
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    noted = {}
    read = read_tensors(path, mapped=noted)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert not any(is_view(tensor, path) for tensor in read.values())
    assert noted == {}


def test_a_file_is_closed_with_the_last_of_its_tensors(path):
    read = read_tensors(path, mapped={})
    assert str(path) in open_files()
    del read
    gc.collect()
    assert str(path) not in open_files()


def open_files():
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of the listing itself
            found.add(os.readlink(link))
    return found
