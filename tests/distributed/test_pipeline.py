"""A pipeline's losses and gradients are those of one process."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from prenorm import ConfigError, ModelConfig, RangeError, TransformerLM
from prenorm.distributed.gradients import clip_grad_norm_
from prenorm.distributed.layout import Layout, stage_layers
from prenorm.distributed.mesh import Place, make_mesh
from prenorm.distributed.pipeline import MicroBatch, Pipeline
from prenorm.distributed.stages import split_into_stages
from prenorm.family import Family
from prenorm.kernels.dropout_masks import DropoutKey, dropout_key
from prenorm.ops.cross_entropy import IGNORED
from prenorm.training.config import TrainConfig
from prenorm.training.optimizer import MuonAndAdamW

from .processes import run

ROWS, SEQ = 8, 12


def model_of(**fields):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_layers": 5, "num_heads": 2, "max_seq_len": SEQ, "d_ff": 32}
    return TransformerLM(ModelConfig(40, **{**sizes, **fields})).train()


def batch_of():
    """Packed documents, padding, and rows with very different numbers of targets, one of them with none."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 40, (ROWS, SEQ), generator=draw)
    targets = torch.randint(0, 40, (ROWS, SEQ), generator=draw)
    targets[torch.rand(ROWS, SEQ, generator=draw) < torch.linspace(0, 1.0, ROWS)[:, None]] = IGNORED
    targets[-1] = IGNORED
    segments = torch.randint(0, 2, (ROWS, SEQ), generator=draw).cumsum(1)
    segments[2, 8:] = -1
    return tokens, targets.masked_fill(segments < 0, IGNORED), segments


def micro_batches(rows, seed=None, place=None):
    """The rows of this data rank, some at a time; without a place all rows."""
    tokens, targets, segments = batch_of()
    ranks = place.layout.data_ranks if place else 1
    own, scale = ROWS // ranks, ranks / (targets != IGNORED).sum()  # gradients are averaged over the data ranks
    begin = own * place.data_rank if place else 0
    spread = {"part": place.tp, "parts": place.layout.tp} if place else {}
    for first in range(begin, begin + own, rows):
        part = slice(first, first + rows)
        key = None if seed is None else DropoutKey(seed, 1, tuple(range(first, first + rows)), SEQ, **spread)
        share = float((targets[part] != IGNORED).sum() * scale)
        yield MicroBatch(tokens[part], targets[part], segments[part], share, key)


def in_one_process(fields, seed=None, **options):
    """The loss of all rows at once, and the gradients of all parameters."""
    model = model_of(**fields)
    (whole,) = micro_batches(ROWS, seed)
    with nullcontext() if seed is None else dropout_key(whole.dropout):
        loss = model.loss(whole.token_ids, whole.targets, segment_ids=whole.segment_ids, **options)
    loss.backward()
    return loss.item(), {name: one.grad for name, one in model.named_parameters()}


def as_stages(layout, fields, stages_per_rank, rows, seed, options):
    """On each rank: two losses with gradients, one in evaluation, the norm of all; and its own gradients, whole."""
    model, mesh, place = model_of(**fields), make_mesh(layout), Place(layout, dist.get_rank())
    pipeline = Pipeline(model, mesh, stages_per_rank=stages_per_rank, **options)
    parts = list(micro_batches(rows, seed, place))
    losses = [pipeline.add_up_gradients(parts)]
    model.zero_grad()
    losses.append(pipeline.add_up_gradients(parts))
    gradients = {name: whole_of(one.grad) for name, one in model.named_parameters()}
    tied = [pipeline.tied_weight] if place.pp and pipeline.tied_weight is not None else []
    norm = clip_grad_norm_(model.parameters(), 0.1, mesh, counted_elsewhere=tied).item()
    model.eval()
    together = torch.tensor([*losses, pipeline.loss(parts)], dtype=torch.float64)
    for axis in ("dp", "fsdp"):
        dist.all_reduce(together, group=mesh.get_group(axis))
    return [*(together / layout.data_ranks).tolist(), norm], gradients


def whole_of(gradient):
    return getattr(gradient, "full_tensor", lambda: gradient)().clone()


def assert_same(ranks, fields, seed=None):
    loss, gradients = in_one_process(fields, seed)
    norm = torch.linalg.vector_norm(torch.stack([one.norm() for one in gradients.values()])).item()
    found = {}
    for (first, second, _, clipped), parts in ranks:
        assert [first, second, clipped] == pytest.approx([loss, loss, norm], rel=1e-6)
        for name, part in parts.items():
            apart = torch.linalg.vector_norm(part - gradients[name])
            assert apart <= 1e-6 * torch.linalg.vector_norm(gradients[name]), name
            assert torch.equal(found.setdefault(name, part), part), name  # of the tied head there are two
    assert found.keys() == gradients.keys()
    assert len({tuple(losses) for losses, _ in ranks}) == 1


LEARNED = Family(learned_positions=True, gated=False, norm="layer", ffn_bias=True, activation="gelu")


TIED = {"tie_embeddings": True}
DROPPED = {"dropout": 0.2, **TIED}
CASES = [  # layout, stages of a rank, rows of a micro-batch, the model, seed of dropout, what the pipeline is given
    (Layout(pp=2), 1, 2, DROPPED, 5, {"use_checkpointing": True}),
    (Layout(pp=2), 2, 2, TIED, None, {}),
    (Layout(pp=4), 1, 2, {}, None, {}),
    (Layout(pp=4), 1, 1, TIED, None, {}),
    (Layout(pp=4), 1, 4, TIED, None, {}),  # fewer micro-batches than stages
    (Layout(pp=2), 2, 1, {"dropout": 0.3}, 2**70, {"use_checkpointing": 2}),
    (Layout(pp=3), 1, 2, {"qk_norm": True, "window": 4}, None, {}),
    (Layout(pp=2), 1, 4, {"family": LEARNED}, None, {}),
    (Layout(pp=8), 1, 1, {"num_layers": 8, "dropout": 0.1}, 3, {}),
    (Layout(pp=2, dp=2), 1, 2, DROPPED, 3, {}),
    (Layout(pp=2, fsdp=2), 1, 2, DROPPED, 3, {"use_checkpointing": True}),
    (Layout(pp=2, tp=2), 1, 2, DROPPED, 3, {"use_checkpointing": True}),
    (Layout(pp=2, tp=2), 2, 2, {}, None, {}),
    (Layout(pp=2, fsdp=2), 2, 2, {}, None, {}),
    (Layout(pp=2, dp=2, fsdp=2), 1, 1, {}, None, {}),
    (Layout(pp=2, dp=2, tp=2), 1, 2, DROPPED, 4, {}),
    (Layout(pp=2, fsdp=2, tp=2), 1, 2, DROPPED, 4, {}),
    (Layout(pp=2, fsdp=2, tp=2), 2, 2, {"dropout": 0.2}, 4, {"use_checkpointing": True}),
    (Layout(pp=2, tp=2), 1, 2, {"family": LEARNED, "num_heads": 4, "tie_embeddings": True}, None, {}),
]


@pytest.mark.parametrize(
    ("layout", "stages", "rows", "fields", "seed", "options"),
    [
        pytest.param(*case, marks=[pytest.mark.long] if number else [], id=str(number))
        for number, case in enumerate(CASES)
    ],
)
def test_losses_and_gradients_are_those_of_one_process(layout, stages, rows, fields, seed, options, tmp_path):
    ranks = run(as_stages, layout.world_size, tmp_path, layout, fields, stages, rows, seed, options)
    assert_same(ranks, fields, seed)


def trained(layout, optimizer):
    """The losses of 12 steps with clipped gradients; in one process without a layout."""
    rate = {"lr": 0.01} if optimizer == "adamw" else {}
    config = TrainConfig.from_fields({"preset": "tiny", "optimizer": optimizer, "weight_decay": 0.1, **rate})
    model, place, mesh, tied = model_of(**TIED), None, None, []
    if layout is not None:
        mesh, place = make_mesh(layout), Place(layout, dist.get_rank())
        pipeline = Pipeline(model, mesh)
        tied = [pipeline.tied_weight] if place.pp and pipeline.tied_weight is not None else []
    steps, losses = MuonAndAdamW(model, config), []
    for step in range(1, 13):
        if layout is None:
            (whole,) = micro_batches(ROWS)
            loss = model.loss(whole.token_ids, whole.targets, segment_ids=whole.segment_ids)
            loss.backward()
        else:
            loss = torch.tensor(pipeline.add_up_gradients(list(micro_batches(2, None, place))))
            dist.all_reduce(loss)
            loss = loss / layout.world_size
        losses.append(loss.item())
        clip_grad_norm_(model.parameters(), 1.0, mesh, counted_elsewhere=tied)
        steps.step(min(1.0, step / 4))
    return losses


@pytest.mark.long
@pytest.mark.parametrize(("optimizer", "apart"), [("adamw", 1e-5), ("muon", 1e-3)])
@pytest.mark.parametrize("layout", [Layout(pp=2, tp=2), Layout(pp=2, fsdp=2), Layout(pp=2, fsdp=2, tp=2)], ids=str)
def test_over_twelve_steps_losses_are_those_of_one_process(layout, optimizer, apart, tmp_path):
    expected = trained(None, optimizer)
    assert expected[-1] < 0.9 * expected[0]
    for losses in run(trained, layout.world_size, tmp_path, layout, optimizer):
        assert losses == pytest.approx(expected, rel=apart)


def test_layers_are_spread_evenly_and_an_odd_one_is_not_beside_the_head():
    assert [len(layers) for layers in stage_layers(10, 4)] == [2, 3, 3, 2]
    assert [list(layers) for layers in stage_layers(5, 4)] == [[0], [1], [2, 3], [4]]
    for layers, stages in ((7, 1), (7, 7), (23, 6)):
        sizes = [len(part) for part in stage_layers(layers, stages)]
        assert sum(sizes) == layers
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ConfigError, match="5 stages and num_layers is 4"):
        stage_layers(4, 5)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_ranks_model_has_the_names_of_the_whole_one_and_all_ranks_have_every_name(stages):
    whole = set(model_of().state_dict())
    parts = []
    for rank in range(2):
        model = model_of()
        split_into_stages(model, 2, rank, stages)
        parts.append(set(model.state_dict()))
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]


def test_a_part_of_a_model_says_so_when_it_is_called():
    model = model_of()
    split_into_stages(model, 2, 1)
    with pytest.raises(ConfigError, match="only some layers of the model"):
        model(torch.zeros(1, 3, dtype=torch.long))


def refusals():
    """What steps raise whose micro-batches have two shapes, and five of them where stages are interleaved."""
    tokens, targets, segments = batch_of()
    for counts, stages in (([2, 1], 1), ([1] * 5, 2)):
        pipeline = Pipeline(model_of(), make_mesh(Layout(pp=2)), stages_per_rank=stages)
        with pytest.raises(ConfigError) as error:
            pipeline.add_up_gradients([MicroBatch(tokens[:n], targets[:n], segments[:n], 1.0) for n in counts])
        yield str(error.value)


def refused():
    return list(refusals())


def test_micro_batches_that_no_schedule_can_run_are_refused(tmp_path):
    for shapes, number in run(refused, 2, tmp_path):
        assert "one shape" in shapes
        assert "equal rounds, but there are 5; a multiple of 2 would do, such as 4" in number


def no_pipeline():
    """What a mesh without stages raises; and the loss of two stages that also shard their parameters."""
    with pytest.raises(ConfigError, match="needs a mesh with a dim"):
        Pipeline(model_of(), init_device_mesh("cpu", (4,), mesh_dim_names=("fsdp",)))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "fsdp"))
    return Pipeline(model_of(), mesh).add_up_gradients(list(micro_batches(2)))


@pytest.mark.long
def test_a_mesh_needs_stages_and_no_dims_that_are_not_used(tmp_path):
    loss, _ = in_one_process({})
    assert run(no_pipeline, 4, tmp_path) == pytest.approx([loss] * 4, rel=1e-6)


def out_of_range():
    """What a token outside the vocabulary raises on the first stage, once the pipeline has run."""
    pipeline = Pipeline(model_of(), make_mesh(Layout(pp=2)))
    parts = list(micro_batches(2))
    pipeline.add_up_gradients(parts)
    if dist.get_rank() == 0:  # the other one would wait for activations
        parts[0].token_ids[0, 0] = 40
        try:
            pipeline.add_up_gradients(parts)
        except RangeError as error:
            return str(error)


@pytest.mark.long
def test_what_a_stage_raises_comes_as_it_is(tmp_path):
    assert "40" in run(out_of_range, 2, tmp_path)[0]
