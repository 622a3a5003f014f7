import copy
import io
import re
import sys
from pathlib import Path

import pytest
import torch

from prenorm.checkpoint.header import DTYPES
from prenorm.checkpoint.pages import LEAST, fresh


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_fresh_memory_is_a_tensor_like_any_other(dtype):
    rows = LEAST // 1024 // dtype.itemsize
    large, small = fresh((rows, 1024), dtype), fresh((3, 5), dtype)
    assert (large.shape, small.shape, large.dtype, small.dtype) == ((rows, 1024), (3, 5), dtype, dtype)
    large.zero_()
    again = fresh((rows, 1024), dtype)
    again.fill_(1)
    assert not large.view(torch.uint8).any()
    again.copy_(large)
    stored = io.BytesIO()
    torch.save(large, stored)
    for other in (copy.deepcopy(large), large.clone()):
        assert torch.equal(other.view(torch.uint8), large.view(torch.uint8))


@pytest.mark.parametrize("shape", [(), (0,), (0, 7), (1,)])
def test_any_shape_has_its_memory(shape):
    assert fresh(shape, torch.float32).shape == shape


@pytest.mark.skipif(
    sys.platform != "linux" or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this system has no pages of 2 MB",
)
def test_large_tensors_ask_for_large_pages_and_give_their_memory_back():
    tensor = fresh((LEAST,), torch.uint8)
    assert "hg" in flags_at(tensor.data_ptr())
    place = tensor.data_ptr()
    part = tensor[5:9]
    del tensor
    part.fill_(3)  # a view keeps it
    del part
    assert "hg" not in flags_at(place)


def flags_at(address):
    """What was asked for the memory at an address; nothing where there is none."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []
