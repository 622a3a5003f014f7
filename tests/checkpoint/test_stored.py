"""Parts that lie in one tensor of a folder: joined as the layout says, and split into what they were."""

from typing import Any

import pytest
import torch

from prenorm.checkpoint.names import Parameter
from prenorm.checkpoint.stored import join, parts_of_stored, split, stored_shapes

HEAD_DIM = 2
PARTS: dict[str, Any] = {  # how they lie: the shapes of the parts, and that of the whole
    "rows": ([(4, 3), (2, 3), (2, 3)], (8, 3)),
    "columns": ([(4, 3), (2, 3)], (3, 6)),
    "heads": ([(6, 3), (6, 3), (6, 3)], (18, 3)),
    "row": ([(5,), (5,)], (2, 5)),
}


def parts_of(lies):
    return [Parameter(f"part{i}", "whole", shape, lies) for i, shape in enumerate(PARTS[lies][0])]


def numbers(parts):
    return [torch.randn(part.shape, generator=torch.Generator().manual_seed(i)) for i, part in enumerate(parts)]


@pytest.mark.parametrize("lies", PARTS)
def test_what_is_joined_has_its_shape_and_comes_apart_again(lies):
    parts = parts_of(lies)
    tensors = numbers(parts)
    whole = join(parts, tensors, HEAD_DIM)
    assert {"whole": tuple(whole.shape)} == stored_shapes(parts) == {"whole": PARTS[lies][1]}
    assert whole.is_contiguous()
    again = split(parts, whole, HEAD_DIM)
    assert all(torch.equal(one, other) and one.is_contiguous() for one, other in zip(again, tensors, strict=True))
    assert len({tensor.untyped_storage().data_ptr() for tensor in (whole, *again)}) == 1 + len(parts)


def test_each_layout_is_as_it_says():
    q, k, v = (torch.arange(start, start + 4.0)[:, None] for start in (0, 10, 20))  # two heads of two rows
    parts = [Parameter(name, "qkv", (4, 1), "heads") for name in "qkv"]
    assert join(parts, [q, k, v], HEAD_DIM).flatten().tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]
    columns = [Parameter(name, "qk", (4, 1), "columns") for name in "qk"]
    assert join(columns, [q, k], HEAD_DIM).tolist() == [[0, 1, 2, 3, 10, 11, 12, 13]]
    rows = [Parameter(name, "norms", (4,), "row") for name in "qk"]
    assert join(rows, [q[:, 0], k[:, 0]], HEAD_DIM).tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]


def test_a_tensor_of_one_part_is_the_part_itself():
    (part,) = parts = [Parameter("a", "b", (2, 3))]
    x = torch.ones(2, 3)
    assert join(parts, [x], HEAD_DIM) is x
    assert split(parts, x, HEAD_DIM)[0] is x
    assert parts_of_stored(parts) == {"b": [part]}
