"""Any part of a tensor is read from files that hold it in any pieces; pieces that do not make it up are refused."""

import itertools
import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm.checkpoint.files import write_atomically
from prenorm.checkpoint.pieces import StoredTensors, are_all, check_names, piece_name, shape_of, whole
from prenorm.checkpoint.tensors import tensors_content
from prenorm.errors import CheckpointError


def write(path, tensors):
    write_atomically(path, tensors_content(tensors))
    return path


@st.composite
def cut_tensors(draw):
    """A tensor, the pieces of a grid that its axes are cut into, and a part of it."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))}) for size in shape]
    regions: list[tuple[Any, ...]] = [()]
    for cut in cuts:
        axis = list(itertools.pairwise(cut)) or [(0, 0)]
        regions = [(*region, one) for region in regions for one in axis]
    wanted = tuple(sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]))
    tensor = torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)
    return tensor, regions, tuple(tuple(axis) for axis in wanted)


def part_of(tensor, region):
    return tensor[tuple(slice(*axis) for axis in region)]


@given(cut=cut_tensors())
def test_any_part_is_read_from_any_pieces(cut, tmp_path_factory):
    tensor, regions, wanted = cut
    home = tmp_path_factory.mktemp("pieces")
    paths = [
        write(home / f"{number}", {piece_name("w", region, tensor.shape): part_of(tensor, region), f"{number}": tensor})
        for number, region in enumerate(regions)
    ]
    stored = StoredTensors(paths)
    assert stored.shapes["w"] == tuple(tensor.shape)
    for region in (whole(tensor.shape), wanted):
        assert torch.equal(stored.read({"w": region})["w"], part_of(tensor, region))


def test_a_long_row_and_many_rows_are_read_in_chunks(tmp_path):
    wide, long = torch.randn(3, 100_000), torch.randn(100_000, 5)
    stored = StoredTensors([write(tmp_path / "file", {"wide": wide, "long": long})])
    read = stored.read({"wide": ((1, 3), (7, 99_999)), "long": ((11, 99_990), (2, 4))})
    assert torch.equal(read["wide"], wide[1:3, 7:99_999])
    assert torch.equal(read["long"], long[11:99_990, 2:4])


@given(st.data())
def test_regions_are_all_of_a_tensor_where_each_number_is_in_one_of_them(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    axes = [
        st.tuples(st.integers(0, size), st.integers(0, size + 1)).map(sorted).filter(lambda axis: axis[0] < axis[1])
        for size in shape
    ]
    regions = data.draw(st.lists(st.tuples(*axes).map(lambda one: tuple(map(tuple, one))), max_size=5))
    times = np.zeros([size + 1 for size in shape], int)
    for region in regions:
        times[tuple(slice(*axis) for axis in region)] += 1
    inside = times[tuple(slice(size) for size in shape)]
    assert are_all(regions, shape) == (bool((inside == 1).all()) and times.sum() == inside.sum())


def test_the_name_of_a_piece_is_its_place_and_a_whole_tensor_has_its_own():
    assert piece_name("w", ((2, 4), (0, 3)), (5, 3)) == "w[2:4 of 5, 0:3 of 3]"
    assert piece_name("w", ((0, 5), (0, 3)), (5, 3)) == "w"
    assert piece_name("step", (), ()) == "step"
    assert shape_of(((2, 4), (0, 3))) == (2, 3)
    check_names(["w[0]", "w[0:1 of 2] ", "layers.0.w"])
    with pytest.raises(CheckpointError, match=r"may not end in a place, as w\[0:1 of 2\] does"):
        check_names(["w[0:1 of 2]"])


ONE = torch.ones(1, 3)
WRONG = {
    "a gap": {"w[0:1 of 3, 0:3 of 3]": ONE, "w[2:3 of 3, 0:3 of 3]": ONE},
    "an overlap": {"w[0:1 of 1, 0:3 of 3]": ONE, "w": ONE},
    "beyond the end": {"w[1:2 of 1, 0:3 of 3]": ONE},
    "backwards": {"w[3:2 of 3, 0:3 of 3]": ONE},
    "another shape": {"w[0:1 of 2, 0:3 of 3]": ONE, "w[1:2 of 3, 0:3 of 3]": ONE},
    "another number of axes": {"w[0:3 of 6]": ONE, "w[3:6 of 6]": ONE},
    "another dtype": {"w[0:1 of 2, 0:3 of 3]": ONE, "w[1:2 of 2, 0:3 of 3]": ONE.int()},
    "too long a number": {f"w[0:1 of {'9' * 18}, 0:3 of 3]": ONE},
}


@pytest.mark.parametrize("tensors", WRONG.values(), ids=WRONG)
def test_pieces_that_do_not_make_up_a_tensor_are_refused_by_name(tmp_path, tensors):
    with pytest.raises(CheckpointError, match=r"file.*w"):
        StoredTensors([write(tmp_path / "file", tensors)])


def test_pieces_that_would_make_a_huge_grid_are_refused_at_once(tmp_path):
    names = [f"w[{i}:{i + 1} of 9999, {i}:{i + 1} of 9999]" for i in range(3500)]
    with pytest.raises(CheckpointError, match=r"those of w are not"):
        StoredTensors([write(tmp_path / "file", {name: torch.ones(1, 1) for name in names})])


def test_a_dtype_that_is_not_known_is_refused(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(CheckpointError, match=r"holds tensors of dtype F8_E5M2; known are"):
        StoredTensors([tmp_path / "file"])
