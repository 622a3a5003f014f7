import json
import struct

import pytest
import torch

from prenorm.checkpoint import manifest, read_at, sums
from prenorm.checkpoint.folder import load, save
from prenorm.checkpoint.manifest import MANIFEST, accept, read_manifest
from prenorm.errors import CheckpointError

from .examples import config, equal, tensors_of


@pytest.fixture(params=["all", "most", "few"])
def converted(request):
    """Tensors of which so many are in float32, the others in bfloat16."""
    tensors = tensors_of(config())
    share = {"all": 1, "most": 0.7, "few": 0.3}[request.param]
    wide = list(tensors)[: int(share * len(tensors))]
    return {name: tensor if name in wide else tensor.bfloat16() for name, tensor in tensors.items()}


def small_blocks(monkeypatch):
    """Every file is a large one, of many blocks."""
    monkeypatch.setattr(manifest, "SMALL", 0)
    monkeypatch.setattr(sums, "BLOCK", 4096)
    monkeypatch.setattr(sums, "BLOCKS_OF_A_TASK", 2)


def test_a_flipped_bit_in_any_block_of_any_file_is_refused_before_a_tensor_is_given(tmp_path, monkeypatch, converted):
    small_blocks(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    save(tmp_path, config(), converted, max_shard_size="15KB")
    expected = {name: tensor.bfloat16() for name, tensor in converted.items()}
    assert equal(load(tmp_path, dtype=torch.bfloat16).tensors, expected)
    files = [path for path in sorted(tmp_path.iterdir()) if path.name != MANIFEST]
    assert len(files) > 3
    for path in files:
        data = path.read_bytes()
        for number, begin in enumerate(range(0, len(data), 4096)):
            damaged = bytearray(data)
            place = min(begin + 37 * number % 4096, len(data) - 1)
            damaged[place] ^= 1 << number % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=rf"{path.name} has other bytes .* from byte {begin:,} on"):
                load(tmp_path, dtype=torch.bfloat16)
        path.write_bytes(data)
    assert equal(load(tmp_path, dtype=torch.bfloat16).tensors, expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_damaged_files_are_named_in_the_order_of_the_manifest_and_each_from_its_first_damage_on(
    tmp_path, monkeypatch, dtype
):
    (tmp_path / "generation_config.json").write_text("{}")
    save(tmp_path, config(), tensors_of(config()), max_shard_size="30KB")
    small_blocks(monkeypatch)
    accept(tmp_path)
    listed = dict(reversed(read_manifest(tmp_path).items()))  # weights last
    (tmp_path / MANIFEST).write_bytes(manifest.manifest_content(listed))
    names = list(listed)
    for name in names:
        damaged = bytearray((tmp_path / name).read_bytes())
        if name.endswith(".json"):
            damaged[1:2] = b" "  # in place of a new line
        else:
            damaged[4096::4096] = b"?" * len(damaged[4096::4096])  # not in the header, which is read before
        (tmp_path / name).write_bytes(damaged)
    with pytest.raises(CheckpointError, match="files must be as they were saved") as refused:
        load(tmp_path, dtype=dtype)
    places = [str(refused.value).find(f"{tmp_path / name} has other bytes") for name in names]
    assert -1 not in places
    assert places == sorted(places)
    assert str(refused.value).count("from byte 4,096 on") == sum(name.endswith(".safetensors") for name in names)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1.3), (None, 2.1)])
def test_bytes_that_are_converted_are_read_once_and_others_for_the_sums_too(tmp_path, monkeypatch, dtype, most):
    large = config(vocab_size=20_000)
    save(tmp_path, large, tensors_of(large))
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 3 * sums.BLOCK
    counts = []

    def counted(file, place, room, read=read_at._read_at):
        counts.append(read(file, place, room))
        return counts[-1]

    monkeypatch.setattr(read_at, "_read_at", counted)
    loaded = load(tmp_path, dtype=dtype)
    assert equal(loaded.tensors, {name: tensor.to(dtype) for name, tensor in tensors_of(large).items()})
    assert size <= sum(counts) <= most * size


@pytest.mark.parametrize("spaces", [1, 2, 4])
def test_numbers_that_lie_in_two_blocks_are_read_and_compared(tmp_path, monkeypatch, spaces):
    save(tmp_path, config(), tensors_of(config()))
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    path.write_bytes(struct.pack("<Q", length + spaces) + data[8 : 8 + length] + b" " * spaces + data[8 + length :])
    small_blocks(monkeypatch)
    accept(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["files"][path.name]["sums"]
    expected = {name: tensor.double() for name, tensor in tensors_of(config()).items()}
    assert equal(load(tmp_path, dtype=torch.float64).tensors, expected)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="has other bytes than were saved"):
        load(tmp_path, dtype=torch.float64)
