import json
import random
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prenorm.checkpoint import read_at
from prenorm.checkpoint.files import write_atomically
from prenorm.checkpoint.header import read_header
from prenorm.checkpoint.tensors import read_tensors, tensors_content
from prenorm.errors import CheckpointError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
FLOATS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(3, dtype=torch.bfloat16)}


def file_of(header, data=b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    tensor = torch.randint(0, 2, shape).to(draw(st.sampled_from(DTYPES)))
    tensor = tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor
    return tensor[::2] if shape and draw(st.booleans()) else tensor


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "__metadata__"), tensors(), max_size=5))
def test_what_is_written_is_read_back_and_the_library_agrees(tmp_path_factory, named):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    write_atomically(path, tensors_content(named))
    for read in (read_tensors(path), load_file(path)):
        assert read.keys() == named.keys()
        for name, tensor in named.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)


def test_a_file_that_the_library_wrote_is_read(tmp_path):
    save_file(FLOATS, tmp_path / "theirs.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "theirs.safetensors")
    assert header.metadata == {"format": "pt"}
    assert header.tensors["weight"][:2] == ("F32", (2, 3))
    assert torch.equal(read_tensors(tmp_path / "theirs.safetensors", ["weight"])["weight"], FLOATS["weight"])


def test_tensors_that_share_memory_and_require_gradients_are_each_written_whole(tmp_path):
    weight = torch.nn.Parameter(torch.randn(4, 4))
    write_atomically(tmp_path / "shared", tensors_content({"a": weight, "b": weight[1:], "c": weight.T}))
    read = read_tensors(tmp_path / "shared")
    assert torch.equal(read["b"], weight[1:])
    assert torch.equal(read["c"], weight.T)


def test_tensors_stay_as_they_were_read_when_the_file_changes(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, tensors_content(FLOATS))
    read = read_tensors(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(read["weight"], FLOATS["weight"])


def test_tensors_are_read_in_the_dtype_asked_for(tmp_path):
    write_atomically(tmp_path / "file", tensors_content(FLOATS))
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "file", dtype=torch.float64).values()} == {torch.float64}


def test_a_dtype_without_a_name_in_the_format_is_refused_before_anything_is_written():
    with pytest.raises(CheckpointError, match=r"but not spectrum \(torch.complex64\); convert it"):
        tensors_content({"spectrum": torch.zeros(2, dtype=torch.complex64)})


def test_a_tensor_of_an_unknown_dtype_matters_to_those_alone_who_ask_for_it(tmp_path):
    header = {"a": ENTRY, "table": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [8, 16]}}
    (tmp_path / "file").write_bytes(file_of(header, bytes(16)))
    assert torch.equal(read_tensors(tmp_path / "file", ["a"])["a"], torch.zeros(2))
    with pytest.raises(CheckpointError, match="holds tensors of dtype F8_E4M3; known are F64"):
        read_tensors(tmp_path / "file", ["a", "table"])


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, tensors_content(FLOATS))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="file is cut short, or is not a safetensors file"):
            read_tensors(path)


def test_random_damage_to_a_header_raises_nothing_but_our_error(tmp_path):
    path, chance = tmp_path / "file", random.Random(0)
    write_atomically(path, tensors_content(FLOATS))
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(whole) - 30)] = chance.choice(b'\x00"{}[],:0159-.eFP\xff')
        path.write_bytes(damaged)
        with suppress(CheckpointError):  # some damage is harmless, such as another name
            read_tensors(path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            struct.pack("<Q", 2**62) + b"{}",
            "a safetensors header has at most 10,000,000 bytes, but this one claims 4,6",
        ),
        (file_of(b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2), b"x" * 8), "a may be there once only"),
        (file_of({"a": ENTRY}, b"x" * 7), "cut short"),
        (file_of({"a": ENTRY}, b"x" * 9), "1 bytes after its last tensor"),
        (file_of({"a": ENTRY, "b": ENTRY}, b"x" * 8), "without gaps, but b goes from 0 to 8 where 8 is next"),
        (file_of({"a": {**ENTRY, "data_offsets": [4, 12]}}, b"x" * 12), "a goes from 4 to 12 where 0 is next"),
        (file_of({"a": {**ENTRY, "shape": [3]}}, b"x" * 8), r"a of shape \[3\] in F32 needs 12 bytes, but has 8"),
        (file_of({"a": {**ENTRY, "shape": [2**40, 2**40]}}, b"x" * 8), "needs 4835703278458516698824704 bytes"),
        (file_of({"a": {**ENTRY, "shape": [-2]}}, b"x" * 8), "a needs a dtype, a shape and two offsets"),
        (file_of({"a": {**ENTRY, "shape": [True, 2]}}, b"x" * 8), "a needs a dtype, a shape and two offsets"),
        (file_of({"a": {"dtype": "F32"}}), "a needs a dtype, a shape and two offsets"),
        (file_of({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [8, 0]}}, b"x" * 8), "from 8 to 0"),
        (file_of({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, b"x" * 8), "dtype F8_E4M3; known"),
        (file_of({"__metadata__": 3}), "__metadata__ must be an object"),
        (file_of(b"[]"), "must hold a JSON object"),
        (b"PK\x03\x04 a zip archive, as torch.save writes it", "is a pickle under another name"),
        (b"\x80\x02}q\x00.", "is a pickle under another name"),
        (
            file_of({"a": {**ENTRY, "shape": [10**4000, 10**4000]}}, b"x" * 8),
            "a needs a dtype, a shape and two offsets",
        ),
        (file_of({"a": {**ENTRY, "shape": [1] * 17}}, b"x" * 8), "a needs a dtype, a shape and two offsets"),
        (file_of({"a": {**ENTRY, "stride": [1]}}, b"x" * 8), "a needs a dtype, a shape and two offsets"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__ must be an object of texts"),
        (b"", "cut short"),
    ],
)
def test_a_hostile_header_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "hostile.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"hostile.safetensors.*{message}"):
        read_tensors(tmp_path / "hostile.safetensors")


@pytest.mark.parametrize("in_threads", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_tensors_of_any_size_are_read_on_every_system(tmp_path, monkeypatch, in_threads, dtype):
    monkeypatch.setattr(read_at, "IN_THREADS", in_threads)
    named = {f"t{size}": torch.randn(size) for size in (0, 1, 2**15 - 1, 2**15, 2**15 + 1, 3 * 2**15 + 7)}
    write_atomically(tmp_path / "file", tensors_content(named))
    read = read_tensors(tmp_path / "file", dtype=dtype)
    assert all(torch.equal(read[name], tensor.to(dtype or tensor.dtype)) for name, tensor in named.items())


def test_a_file_that_is_replaced_between_header_and_tensors_is_refused(tmp_path):
    write_atomically(tmp_path / "file", tensors_content(FLOATS))
    header = read_header(tmp_path / "file")
    read_tensors(tmp_path / "file", header=header)
    write_atomically(tmp_path / "file", tensors_content(FLOATS))
    with pytest.raises(CheckpointError, match=r"file was replaced while it was read; open the folder again"):
        read_tensors(tmp_path / "file", header=header)


def test_a_file_that_cannot_be_opened_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_tensors(Path(tmp_path / "missing"))


@pytest.mark.parametrize(("wide", "narrow"), [("float32", "float16"), ("bfloat16", "float16"), ("float64", "float32")])
def test_a_number_beyond_the_range_of_the_dtype_that_is_asked_for_is_refused(tmp_path, wide, narrow):
    wide, narrow = getattr(torch, wide), getattr(torch, narrow)
    largest = torch.finfo(narrow).max
    path = tmp_path / "model.safetensors"
    write_atomically(path, tensors_content({"bias": torch.tensor([1.0, torch.inf, -4 * largest / 3], dtype=wide)}))
    with pytest.raises(CheckpointError, match=rf"bias must fit into {narrow}, whose largest .* dtype={wide} keeps it"):
        read_tensors(path, dtype=narrow)
    infinite = torch.tensor([1.0, torch.inf, torch.nan], dtype=wide)
    write_atomically(path, tensors_content({"bias": infinite}))
    assert torch.equal(read_tensors(path, dtype=narrow)["bias"].isinf(), infinite.isinf())


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_reads_like_the_beginning_of_a_pickle_is_one(tmp_path, length):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", length) + header + struct.pack("<2f", 1, 2))
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    assert read_tensors(path)["w"].tolist() == [1, 2]
