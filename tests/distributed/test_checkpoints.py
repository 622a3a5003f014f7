"""Whatever layout a checkpoint was saved in, any other opens it: the same bits, and each process its share alone."""

import re

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from prenorm.checkpoint.header import read_header
from prenorm.distributed.checkpoints import Shares, gathered, group_for_checkpoints, region_of
from prenorm.distributed.layout import Layout
from prenorm.errors import CheckpointError
from prenorm.training.checkpoint_writer import CheckpointWriter
from prenorm.training.checkpoints import latest_checkpoint, read_parts, read_state, save_checkpoint
from prenorm.training.config import TrainConfig

from .processes import run
from .shared_state import Spread, differing, whole_parts

CONFIG = TrainConfig.from_fields({"preset": "tiny", "keep_checkpoints": 2})

FEW = [Layout(), Layout(fsdp=3), Layout(tp=2, pp=2)]
MANY = [
    *FEW,
    Layout(dp=2),
    Layout(fsdp=2),
    Layout(tp=2),
    Layout(pp=2),
    Layout(tp=3),
    Layout(fsdp=5),
    Layout(pp=3),
    Layout(dp=2, tp=2),
    Layout(dp=2, fsdp=2),
    Layout(fsdp=2, tp=2),
    Layout(dp=2, pp=2),
    Layout(fsdp=3, tp=2),
    Layout(dp=2, fsdp=2, tp=2),
    Layout(fsdp=2, tp=2, pp=2),
    Layout(tp=4, pp=2),
]


def name_of(layout):
    return f"dp{layout.dp}-fsdp{layout.fsdp}-tp{layout.tp}-pp{layout.pp}"


def save_at(layout, home):
    """Two checkpoints, the second while nothing has changed in who holds what."""
    spread, group = Spread(layout), group_for_checkpoints(30.0)
    with CheckpointWriter(home / name_of(layout), CONFIG, {"threads": 1}, group) as writer:
        for step in (6, 7):
            writer.save(step, spread.parts(step), {"seen": [step]})


def read_at(layout, home, saved):
    """What is not the same in the checkpoints of these layouts, by name; the first is gathered again, too."""
    spread, group = Spread(layout), group_for_checkpoints(30.0)
    expected, wrong = spread.parts(7), {}
    like = spread.parts(1)["model"]
    for other in saved:
        folder = latest_checkpoint(home / name_of(other))
        state = read_state(folder)
        assert (state.step, state.trainer) == (7, {"seen": [7]})
        parts = read_parts(folder, state.parts, like=like, group=group)
        wrong[name_of(other)] = differing(parts, expected)
    whole = {part: gathered(tensors, group) for part, tensors in parts.items()}
    wrong["gathered"] = differing(whole, whole_parts(7)) if dist.get_rank() == 0 else [*whole["model"]]
    return {name: names for name, names in wrong.items() if names}


def assert_all_pairs_are_equal(layouts, home):
    for layout in layouts:
        run(save_at, layout.world_size, home, layout, home)
        whole = read_parts(latest_checkpoint(home / name_of(layout)), ["model", "optimizer"])
        assert differing(whole, whole_parts(7)) == []
    for layout in layouts:
        assert run(read_at, layout.world_size, home, layout, home, layouts) == [{}] * layout.world_size


def test_a_checkpoint_of_any_layout_is_opened_in_any_other(tmp_path):
    assert_all_pairs_are_equal(FEW, tmp_path)


@pytest.mark.long
def test_a_checkpoint_of_eighteen_layouts_is_opened_in_all_of_them(tmp_path):
    assert_all_pairs_are_equal(MANY, tmp_path)


def names_saved_by(layout):
    spread, group = Spread(layout), group_for_checkpoints(30.0)
    return {name for names in Shares(group).of(spread.parts(1)).values() for name in names}


def test_each_number_is_saved_once_by_the_lowest_rank_that_has_it(tmp_path):
    zero, one, two, three = run(names_saved_by, 4, tmp_path, Layout(dp=2, tp=2))
    assert {"embedding.weight[0:12 of 23, 0:12 of 12]", "final_norm.weight", "final_norm.weight:step"} <= zero
    assert {"embedding.weight[12:23 of 23, 0:12 of 12]", "layers.0.attn.o_proj.weight[0:12 of 12, 8:16 of 16]"} <= one
    assert "final_norm.weight" not in one
    assert two == three == set()


def fail_to_save(home, error):
    spread, group = Spread(Layout(fsdp=2)), group_for_checkpoints(30.0)
    shares = Shares(group)
    save_checkpoint(home, 1, CONFIG, {}, shares.of(spread.parts(1)), {}, group)
    pieces = shares.of(spread.parts(2))
    if dist.get_rank() == 1:
        pieces["model"] |= error
    with pytest.raises(CheckpointError) as failed:
        save_checkpoint(home, 2, CONFIG, {}, pieces, {}, group)
    return str(failed.value)


def test_what_one_process_cannot_save_is_an_error_in_all_and_leaves_the_checkpoint_before(tmp_path):
    zero, one = run(fail_to_save, 2, tmp_path, tmp_path, {"spectrum": torch.zeros(1, dtype=torch.complex64)})
    assert zero == one
    assert re.match(r"saving the checkpoint of step 2 failed in process 1: .* spectrum \(torch.complex64\)", one)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert differing(read_parts(latest_checkpoint(tmp_path), ["model", "optimizer"]), whole_parts(1)) == []


def hold_other_tensors():
    """Why tensors are not saved, by name."""
    mesh, rank, group = Spread(Layout(tp=2)).mesh, dist.get_rank(), group_for_checkpoints(30.0)
    rows = torch.ones(2, 3)
    one_by_one = {
        "overlapping": torch.ones(4, 3) if rank == 0 else _shared(rows, mesh, Shard(0)),
        "of two dtypes": torch.ones(3) if rank == 0 else torch.ones(3, dtype=torch.float64),
        "not reduced": rows if rank == 0 else _shared(rows, mesh, Partial()),
        "cut otherwise": _shared(torch.ones(3 if rank == 0 else 1, 3), mesh, Shard(0), shape=(4, 3), stride=(3, 1)),
        "a piece[0:1 of 2]": torch.ones(2),
    }
    refused = {}
    for name, tensor in one_by_one.items():
        with pytest.raises(CheckpointError) as error:
            Shares(group).of({"model": {name: tensor}})
        refused[name] = str(error.value)
    return refused


def _shared(local, mesh, placement, **options):
    return DTensor.from_local(local, mesh, [Replicate(), Replicate(), placement], run_check=False, **options)


def test_tensors_that_cannot_be_put_together_again_are_not_saved(tmp_path):
    reasons = {
        "overlapping": "no number of it in two pieces",
        "of two dtypes": "must have one dtype and shape in all processes",
        "not reduced": "reduce it first",
        "cut otherwise": "it holds a tensor of shape",
        "a piece[0:1 of 2]": "may not end in a place",
    }
    for refused in run(hold_other_tensors, 2, tmp_path):
        assert all(name in refused[name] and reason in refused[name] for name, reason in reasons.items()), refused


def read_for_another_model(home):
    spread, group = Spread(Layout(pp=2)), group_for_checkpoints(30.0)
    like = {name: one for name, one in spread.parts(1)["model"].items() if name != "layers.1.norm1.weight"}
    with pytest.raises(CheckpointError) as refused:
        read_parts(latest_checkpoint(home), ["model"], like=like, group=group)
    return str(refused.value)


def test_a_tensor_that_no_process_has_a_place_for_is_refused_by_name(tmp_path):
    save_checkpoint(tmp_path, 1, CONFIG, {}, whole_parts(1), {})
    for message in run(read_for_another_model, 2, tmp_path, tmp_path):
        assert "must be of the model that it is read for, which has no tensor layers.1.norm1.weight (model)." in message


def read_damaged(home):
    like, group = Spread(Layout(fsdp=2)).parts(1)["model"], group_for_checkpoints(30.0)
    with pytest.raises(CheckpointError) as refused:
        read_parts(latest_checkpoint(home), ["model", "optimizer"], like=like, group=group)
    return str(refused.value)


def test_a_flipped_bit_in_any_file_is_an_error_in_all_processes(tmp_path):
    run(save_at, 2, tmp_path, Layout(fsdp=2), tmp_path)
    folder = latest_checkpoint(tmp_path / name_of(Layout(fsdp=2)))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"{part}-0000{rank}.safetensors" for part in ("model", "optimizer") for rank in range(2)]
    for name in (files[1], files[2]):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        for message in run(read_damaged, 2, tmp_path, folder.parents[1]):
            assert f"{folder / name} has other bytes than were saved" in message
            assert f"Once {folder} is deleted, --resume goes on from the one before it." in message
        data[-1] ^= 1
        (folder / name).write_bytes(data)
    names = [name for file in files for name in read_header(folder / file).tensors]
    assert len(names) == len(set(names))


def regions_at(layout):
    spread = Spread(layout)
    return {name: region_of(name, one) for name, one in spread.parts(1)["model"].items()}


def test_a_process_outside_of_a_mesh_and_one_with_an_empty_shard_hold_nothing(tmp_path):
    regions = run(regions_at, 5, tmp_path, Layout(fsdp=5))
    assert [each["final_norm.weight"] for each in regions] == [((0, 3),), ((3, 6),), ((6, 9),), ((9, 12),), ((12, 12),)]
