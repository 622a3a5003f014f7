"""Loss, clipped norm and every gradient of several real processes are those of one process."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import prenorm
from prenorm import ConfigError, TransformerBlock, parallelize
from prenorm.distributed.data_parallel import no_sync
from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import make_mesh
from prenorm.distributed.tensor_parallel import SplitLayer

from .one_process import batch_of, distance, errors, model_of, whole
from .processes import run

WITHIN = 1e-6
FAMILIES = {
    "tied": {"tie_embeddings": True},
    "qk_norm": {"qk_norm": True},
    "biases": {"qkv_bias": True, "o_bias": True},
    "post_norm": {"family": {"residual": "post", "ffn_bias": True, "activation": "gelu_tanh"}},
    "sandwich": {"family": {"residual": "sandwich", "one_plus_norms": True, "embedding_scale": 3.0}},
    "parallel": {"o_bias": True, "family": {"residual": "parallel", "norm": "layer", "logit_divisor": 2.0}},
    "two_norms": {"family": {"residual": "parallel_two_norms", "norm": "layer", "rotary_dim": 2}},
    "gpt2": {
        "tie_embeddings": True,
        "num_kv_heads": 8,
        "max_seq_len": 32,
        "qkv_bias": True,
        "o_bias": True,
        "family": {"norm": "layer", "gated": False, "activation": "gelu", "ffn_bias": True, "learned_positions": True},
    },
    "soft_caps": {"qk_norm": True, "family": {"attention_softcap": 5.0, "logit_softcap": 3.0, "windows": (4, 0)}},
}


def check(tmp_path, layouts, fields=None, *, within=WITHIN, **options):
    """The errors of all ranks are small."""
    world_size = Layout(*layouts[0]).world_size
    for rank, found in enumerate(run(errors_of, world_size, tmp_path, layouts, fields or {}, options)):
        for layout, far in zip(layouts, found, strict=True):
            assert max(far) <= within, (rank, layout, far)


def errors_of(layouts, fields, options):
    return errors(layouts, fields, **options)


@pytest.mark.long
def test_two_processes_along_each_axis(tmp_path):
    check(tmp_path, [(2, 1, 1), (1, 2, 1), (1, 1, 2)], packed=True)


def test_four_processes_in_products(tmp_path):
    layouts = [(2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4), (4, 1, 1)]
    check(tmp_path, layouts, {"tie_embeddings": True, "num_layers": 1}, packed=True, seq=13)


@pytest.mark.long
@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": True, "vocab_size": 51}], ids=["plain", "tied"])
def test_eight_processes_in_products(tmp_path, fields):
    """With tp=8 there are twice as many ranks as key and value heads, and a rank without tokens of a short row."""
    layouts = [(2, 2, 2), (1, 2, 4), (2, 1, 4), (1, 4, 2), (4, 1, 2), (1, 1, 8), (1, 8, 1), (8, 1, 1), (2, 4, 1)]
    check(tmp_path, layouts, fields, packed=True, seq=10)


@pytest.mark.long
def test_three_and_six_processes(tmp_path):
    fields = {"d_model": 48, "num_heads": 6, "num_kv_heads": 3, "d_ff": 96}
    check(tmp_path, [(1, 1, 3)], fields, packed=True)
    check(tmp_path, [(2, 1, 3), (1, 2, 3), (1, 1, 6)], fields, packed=True)


@pytest.mark.long
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_families(tmp_path, fields):
    """In float64, in which some gradients of one process would not be known to 1e-6 in float32."""
    check(tmp_path, [(1, 1, 4), (1, 2, 2)], fields, packed=True, dtype=torch.float64, within=1e-12)


@pytest.mark.long
def test_checkpointed_activations(tmp_path):
    check(tmp_path, [(1, 1, 2), (1, 2, 1), (2, 1, 1)], {"qk_norm": True}, use_checkpointing=True)


@pytest.mark.long
def test_micro_batches_are_averaged_once(tmp_path):
    for found in run(accumulation_errors, 2, tmp_path):
        assert max(found) <= WITHIN


def accumulation_errors():
    """Of gradients added up over three micro-batches, with `no_sync` for all but the last, along dp and fsdp."""
    found = []
    for layout in (Layout(dp=2), Layout(fsdp=2)):
        mesh, model, single = make_mesh(layout), model_of({}), model_of({})
        batch, rank = batch_of(48, rows=12), torch.distributed.get_rank()
        single.loss(**batch).backward()
        parallelize(model, mesh)
        for first in (0, 4, 8):
            part = {name: one[first + 2 * rank :][:2] for name, one in batch.items()}
            with nullcontext() if first == 8 else no_sync(model):
                (model.loss(**part) / 3).backward()
        found += [distance(whole(a.grad), b.grad) for a, b in zip(model.parameters(), single.parameters(), strict=True)]
    return found


@pytest.mark.long
def test_logits_hidden_states_and_greedy_tokens_are_those_of_one_process(tmp_path):
    for logits, hidden, same_tokens in run(outputs, 2, tmp_path):
        assert logits <= WITHIN
        assert hidden <= WITHIN
        assert same_tokens


def outputs():
    single, model = model_of({}).eval(), model_of({}).eval()
    parallelize(model, make_mesh(Layout(tp=2)))
    ids, prompts = batch_of(48)["token_ids"], [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    with torch.no_grad():
        logits, hidden = (distance(model(ids), single(ids)), distance(model.hidden(ids), single.hidden(ids)))
    greedy = {"max_new_tokens": 6, "temperature": 0}
    return logits, hidden, model.generate(prompts, **greedy) == single.generate(prompts, **greedy)


@pytest.mark.long
def test_the_loss_holds_only_this_ranks_logits(tmp_path):
    for largest in run(largest_tensor, 2, tmp_path):
        assert largest <= 8 * 12 * 500  # half of a vocabulary of 1000, and the weights are smaller


def largest_tensor():
    """Elements of the largest tensor that a training step makes."""
    model = model_of({"vocab_size": 1000})
    parallelize(model, make_mesh(Layout(tp=2)))
    batch = batch_of(1000)
    with Largest() as seen:
        model.loss(**batch).backward()
    return seen.numel


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor) and not isinstance(one, DTensor):
                self.numel = max(self.numel, one.numel())
        return out


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["mixed", "theirs", "ours"])
def test_a_block_of_a_users_own_in_three_lines(tmp_path, kind):
    for rank, found in enumerate(run(own_block_errors, 4, tmp_path, kind)):
        assert max(found) <= WITHIN, (rank, found)


def own_block_errors(kind):
    torch.manual_seed(3)
    single = OwnBlock(kind)
    block = copy.deepcopy(single)
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(5))

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    block = prenorm.parallelize(block, mesh)
    mine = x.chunk(2)[mesh.get_local_rank("fsdp")].clone().requires_grad_()
    y = block(mine)
    y.square().mean().backward()

    whole_x = x.clone().requires_grad_()
    expected = single(whole_x)
    expected.square().mean().backward()
    part = slice(2 * mesh.get_local_rank("fsdp"), 2 * mesh.get_local_rank("fsdp") + 2)
    grads = [distance(whole(a.grad), b.grad) for a, b in zip(block.parameters(), single.parameters(), strict=True)]
    matrices: list[Any] = [one for one in block.parameters() if one.ndim == 2]
    assert [one.placements[1].is_replicate() for one in matrices] == [False] * 7
    return [distance(y, expected[part]), distance(mine.grad / 2, whole_x.grad[part]), *grads]


class OwnAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.width = heads, width
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)  # the gradient of a bias would be zero: the same for all scores

    def forward(self, x, mask=None):
        batch, seq, _ = x.shape
        q, k, v = (f(x).view(batch, seq, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, seq, self.width))


class OwnFeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.Linear(width, hidden)

    def forward(self, x):
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class OwnBlock(nn.Module):
    """A block of nn.Linear, or with layers of prenorm's in it."""

    def __init__(self, kind):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.RMSNorm(32)
        self.attention = prenorm.SelfAttention(32, 4) if kind == "ours" else OwnAttention(32, 4)
        self.feed_forward = OwnFeedForward(32, 64) if kind == "theirs" else prenorm.SwiGLU(32, 64)
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x):
        x = x + self.scale * self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


def test_what_cannot_be_spread_is_refused(tmp_path):
    assert run(refusals, 2, tmp_path) == [[True] * 12] * 2


def refusals():
    tp = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    unnamed = init_device_mesh("cpu", (2,))
    other = init_device_mesh("cpu", (2,), mesh_dim_names=("cp",))
    wide = {"qk_norm": True, "num_kv_heads": 8, "family": {"wide_qk_norm": True}}
    three_heads = TransformerBlock(24, 3, 48)
    done = parallelize(TransformerBlock(32, 4, 64), tp)
    both_dtypes = {"mp_policy": MixedPrecisionPolicy(), "autocast_dtype": torch.bfloat16}
    return [
        refused("must be named, from among pp, dp, fsdp, tp", nn.Linear(2, 2), unnamed),
        refused("must be named", nn.Linear(2, 2), other),
        refused("no layer of this Linear can be split", nn.Linear(2, 2), tp),
        refused("tp must divide num_heads, but 2 does not divide 3", three_heads, tp),
        refused("norm of queries and keys is not the same for each head", model_of(wide), tp),
        refused("a quantised model cannot be split", model_of({}).quantize("int8"), tp),
        refused("has no attn", nn.Sequential(nn.Linear(2, 2)), tp, styles={"attn": SplitLayer(("q",), ("o",))}),
        refused("can be spread over processes once", done, tp),
        refused("attn.q_proj.weight is attn.k_proj.weight", shared(), tp),
        refused("from mp_policy or from autocast_dtype", nn.Linear(2, 2), tp, **both_dtypes),
        refused("scale is a single number", scalar(), make_mesh(Layout(fsdp=2))),
        refused("tp must be 1 for an EncoderDecoder", prenorm.EncoderDecoder(ENCODER_DECODER), tp),
    ]


def shared():
    block = TransformerBlock(32, 4, 64)
    block.attn.k_proj.weight = block.attn.q_proj.weight
    return block


def scalar():
    module = nn.Linear(2, 2)
    module.scale = nn.Parameter(torch.tensor(1.0))
    return module


ENCODER_DECODER = prenorm.EncoderDecoderConfig(vocab_size=10, d_model=8, num_layers=1, num_heads=2)


def refused(text, module, mesh, **options):
    try:
        parallelize(module, mesh, **options)
    except ConfigError as error:
        return text in str(error) or str(error)
    return False


@pytest.mark.long
def test_first_weights_are_the_first_ranks(tmp_path):
    first, second = run(weights_after, 2, tmp_path)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def weights_after():
    """Of models that were built with another seed on each rank, spread along each axis."""
    found = []
    for axis in ("dp", "fsdp", "tp"):
        torch.manual_seed(torch.distributed.get_rank())
        block = parallelize(TransformerBlock(32, 4, 64), make_mesh(Layout(**{axis: 2})))
        found += [whole(one.detach()) for one in block.parameters()]
    return found


@pytest.mark.long
def test_mixed_precision_computes_in_its_dtype_and_keeps_float32_weights(tmp_path):
    for dtype, far, weights in run(mixed_precision, 2, tmp_path):
        assert dtype == torch.bfloat16
        assert 0 < far < 0.05
        assert weights == torch.float32


def mixed_precision():
    single, block = TransformerBlock(32, 4, 64), TransformerBlock(32, 4, 64)
    block.load_state_dict(single.state_dict())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    parallelize(block, make_mesh(Layout(fsdp=2)), mp_policy=policy)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    y, expected = block(x), single(x)
    y.float().square().mean().backward()
    expected.square().mean().backward()
    grads = [distance(whole(a.grad), b.grad) for a, b in zip(block.parameters(), single.parameters(), strict=True)]
    return y.dtype, max(grads), next(block.parameters()).dtype


SCALE = 2.0**10  # of the loss: below 6e-5 gradients have less precision in float16
AUTOCAST = {
    **FAMILIES,
    "with_tp": FAMILIES["biases"],
    "qk_norm_with_tp": FAMILIES["qk_norm"],
    "float16": {"qk_norm": True, "qkv_bias": True, "o_bias": True},
    "per_head": {"qk_norm": True, "family": {"norm": "layer", "per_head_qk_norm": True}},
}


@pytest.mark.long
@pytest.mark.parametrize("name", AUTOCAST)
def test_matrices_that_autocast_rounds_are_gathered_rounded_and_no_bit_changes(tmp_path, name):
    rounded = torch.float16 if name == "float16" else torch.bfloat16
    size = 4 if name.endswith("with_tp") else 2
    for dtypes, bits, far in run(autocast_differences, size, tmp_path, AUTOCAST[name], rounded):
        assert dtypes == ({torch.float32} if name == "qk_norm_with_tp" else {rounded, torch.float32})
        assert bits == []
        assert far <= WITHIN


def autocast_differences(fields, rounded):
    """The dtypes of what is gathered; the gradients that differ from those of float32 gathers in any bit; how far the
    worst is from one process.
    """
    tp = torch.distributed.get_world_size() // 2
    mesh, batch = make_mesh(Layout(fsdp=2, tp=tp)), batch_of(48)
    rank = mesh.get_local_rank("fsdp")
    found, single, dtypes = [], model_of(fields), set()
    for dtype in (rounded, None):
        model = parallelize(model_of(fields), mesh, autocast_dtype=dtype)
        if dtype:
            parts = (model.layers[0].ffn, model.final_norm)
            hook = parts[0].register_forward_pre_hook
            hook(lambda *_, parts=parts: dtypes.update(one.dtype for part in parts for one in part.parameters()))
        for first in (0, 4):
            part = {name: one[first + 2 * rank :][:2] for name, one in batch.items()}
            with torch.autocast("cpu", rounded):
                loss = model.loss(**part, use_checkpointing=2)
            (loss * SCALE / 2).backward()
        found.append({name: whole(one.grad) for name, one in model.named_parameters()})
    for first in range(0, 8, 2):
        with torch.autocast("cpu", rounded):
            loss = single.loss(**{name: one[first:][:2] for name, one in batch.items()}, use_checkpointing=2)
        (loss * SCALE / 4).backward()
    bits = [name for name, one in found[0].items() if not torch.equal(one, found[1][name])]
    if tp > 1:  # sums of rounded terms
        return dtypes, bits, 0.0
    return dtypes, bits, max(distance(found[0][name], one.grad) for name, one in single.named_parameters())


@pytest.mark.long
def test_collectives_can_be_differentiated_twice(tmp_path):
    for found in run(second_derivatives, 2, tmp_path):
        assert found <= WITHIN


def second_derivatives():
    """Of a split feed-forward: the gradient of the norm of its gradient."""
    torch.manual_seed(0)
    single = prenorm.SwiGLU(8, 16)
    layer = copy.deepcopy(single)
    parallelize(layer, make_mesh(Layout(tp=2)))
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    return distance(*(twice(one, x) for one in (layer, single)))


def twice(module, x):
    x = x.clone().requires_grad_()
    with prenorm.use_backend("reference"):
        (grad,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]
