"""What a split model and its layers do besides training: caches, masks, generation, saving, other dtypes."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from prenorm import (
    ConfigError,
    RMSNorm,
    SelfAttention,
    SwiGLU,
    TransformerBlock,
    TransformerDecoderBlock,
    TransformerLM,
    parallelize,
)
from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import make_mesh
from prenorm.ops import cross_entropy

from .one_process import batch_of, distance, errors, model_of, whole
from .processes import run

WITHIN = 1e-6
pytestmark = pytest.mark.long


def pair(module, layout):
    """The module, and a copy of it that is spread."""
    return module, parallelize(copy.deepcopy(module), make_mesh(layout))


def test_a_block_alone_takes_masks_and_caches(tmp_path):
    for found in run(block_errors, 2, tmp_path):
        assert max(found) <= WITHIN, found


def block_errors():
    torch.manual_seed(2)
    single, block = pair(TransformerBlock(32, 4, 64, num_kv_heads=2, causal=True, o_bias=True), Layout(tp=2))
    x, mask = torch.randn(3, 6, 32), torch.rand(4, 6, 6) > 0.3
    chunks = [(one.make_cache(3, 6), one) for one in (single, block)]
    steps = [[one(part, cache=cache) for part in x.split([3, 2, 1], dim=1)] for cache, one in chunks]
    return [
        distance(block(x), single(x)),
        distance(block(x, mask=mask.expand(3, 4, 6, 6)), single(x, mask=mask.expand(3, 4, 6, 6))),
        distance(block(x, mask=mask[:1].expand(3, 1, 6, 6)), single(x, mask=mask[:1].expand(3, 1, 6, 6))),
        distance(block(x[0], torch.arange(6) + 2), single(x[0], torch.arange(6) + 2)),
        *map(distance, steps[1], steps[0]),
    ]


def test_a_decoder_block_attends_to_an_encoders_output(tmp_path):
    for found in run(decoder_errors, 2, tmp_path):
        assert max(found) <= WITHIN, found


def decoder_errors():
    """The key biases' gradients are zero but for noise."""
    torch.manual_seed(2)
    single, block = pair(TransformerDecoderBlock(32, 4, dropout=0.0), Layout(tp=2))
    inputs = [torch.randn(2, 5, 32, requires_grad=True), torch.randn(2, 7, 32, requires_grad=True)]
    others = [one.detach().clone().requires_grad_() for one in inputs]
    y, expected = block(*inputs), single(*others)
    y.square().mean().backward()
    expected.square().mean().backward()
    named = zip(block.named_parameters(), single.parameters(), strict=True)
    grads = [distance(whole(a.grad), b.grad) for (name, a), b in named if not name.endswith("k_proj.bias")]
    return [distance(y, expected), *(distance(a.grad, b.grad) for a, b in zip(inputs, others, strict=True)), *grads]


def test_a_split_and_sharded_model_generates_and_is_saved_as_one(tmp_path):
    folder = tmp_path / "saved"
    assert run(generates_and_saves, 4, tmp_path, str(folder)) == [True] * 4
    opened, expected = TransformerLM.from_pretrained(folder), model_of({"tie_embeddings": True, "vocab_size": 51})
    for one, other in zip(opened.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def generates_and_saves(folder):
    single, model = pair(model_of({"tie_embeddings": True, "vocab_size": 51}).eval(), Layout(fsdp=2, tp=2))
    model.save_pretrained(folder)
    prompts, greedy = [[1, 2, 3], [4], [5, 6, 7, 8, 9]], {"max_new_tokens": 5, "temperature": 0}
    return model.generate(prompts, **greedy) == single.generate(prompts, **greedy)


def test_layers_that_are_not_known_run_whole(tmp_path):
    for found in run(unknown_errors, 2, tmp_path):
        assert max(found) <= WITHIN, found


def unknown_errors():
    """Of a block with an attention of PyTorch's, and of a model with two layers of a user's between split ones."""
    torch.manual_seed(0)
    single, block = pair(Mixed(), Layout(tp=2))
    x = torch.randn(2, 6, 32)
    y, expected = block(x), single(x)
    backward(y.square().mean(), expected.square().mean())
    found = [distance(y, expected), *compared(block, single)]
    model = model_of({})
    model.layers[0].attn, model.layers[1].ffn = Shifted(32, 8, causal=True), Squared()
    single, model = pair(model, Layout(tp=2))
    batch = batch_of(48)
    loss, expected = model.loss(**batch), single.loss(**batch)
    backward(loss, expected)
    return [*found, distance(loss, expected), *compared(model, single)]


def backward(*losses):
    for loss in losses:
        loss.backward()


def compared(module, single):
    return [distance(whole(a.grad), b.grad) for a, b in zip(module.parameters(), single.parameters(), strict=True)]


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
        self.ffn = SwiGLU(32, 64)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.ffn(x)


class Shifted(SelfAttention):
    """An attention whose heads are not alike."""

    def project(self, x):
        q, k, v = super().project(x)
        return q, k, v.roll(1, dims=-3)


class Squared(nn.Module):
    """Its weight is not called."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(32, 32)

    def forward(self, x):
        return nn.functional.linear(x.square() - x.square().mean(-2, keepdim=True), self.proj.weight, self.proj.bias)


def test_a_loss_of_many_chunks(tmp_path):
    for found in run(chunked_errors, 2, tmp_path):
        assert max(max(one) for one in found) <= WITHIN, found


def chunked_errors():
    vars(cross_entropy)["CHUNK_ELEMENTS"] = 5 * 24  # five rows at a time
    return [
        *errors([(1, 1, 2)], {}, packed=True),
        *errors([(1, 1, 2)], {"family": {"logit_softcap": 3.0, "logit_divisor": 2.0}}, packed=True),
    ]


def test_a_hook_on_the_head_is_called_and_counts(tmp_path):
    for found in run(hooked_head, 2, tmp_path):
        assert found <= WITHIN


def hooked_head():
    single, model = pair(model_of({}), Layout(tp=2))
    for one in (single, model):
        one.lm_head.register_forward_hook(lambda module, args, logits: logits * 1.5)
    batch = batch_of(48)
    return distance(model.loss(**batch), single.loss(**batch))


def test_autocast_computes_what_one_process_does(tmp_path):
    for loss, grad, dtype in run(autocast, 2, tmp_path):
        assert loss < 1e-3
        assert grad < 0.05
        assert dtype == torch.float32


def autocast():
    single, model = pair(model_of({}), Layout(tp=2))
    batch = batch_of(48)
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = model.loss(**batch), single.loss(**batch)
    loss.backward()
    expected.backward()
    grads = [distance(whole(a.grad), b.grad) for a, b in zip(model.parameters(), single.parameters(), strict=True)]
    return distance(loss, expected), max(grads), next(model.parameters()).grad.dtype


def test_dropout_of_a_split_sequence_is_that_of_one_process(tmp_path):
    for far, zeros in run(dropped, 2, tmp_path):
        assert far == 0
        assert 0.4 < zeros < 0.6


def dropped():
    single, block = pair(TransformerBlock(32, 4, 64, dropout=0.5), Layout(tp=2))
    x, mesh = torch.randn(2, 7, 32), make_mesh(Layout(tp=2))["tp"]
    part = DTensor.from_local(
        x.chunk(2, dim=1)[mesh.get_local_rank()], mesh, [Shard(1)], shape=x.shape, stride=x.stride()
    )
    torch.manual_seed(1)
    expected = single.dropout(x)
    torch.manual_seed(1)
    y = block.dropout(part).full_tensor()
    return (y - expected).abs().max().item(), (y == 0).float().mean().item()


def test_other_seeds_and_other_tensors_are_refused(tmp_path):
    assert run(refusals, 2, tmp_path) == [[True, True]] * 2


def refusals():
    mesh = make_mesh(Layout(tp=2))
    torch.manual_seed(torch.distributed.get_rank())
    found = []
    try:
        parallelize(TransformerBlock(32, 4, 64, dropout=0.1), mesh)
    except ConfigError as error:
        found.append("must have the same seed" in str(error) and "[0, 1]" in str(error))
    torch.manual_seed(0)
    block = parallelize(TransformerBlock(32, 4, 64), mesh)
    assert type(block.norm1) is RMSNorm
    try:
        block(DTensor.from_local(torch.ones(2, 3, 32), mesh["tp"], [Replicate()]))
    except ConfigError as error:
        found.append("x.full_tensor() is plain" in str(error))
    return found


def test_a_layer_may_take_a_tensor_in_a_tuple_and_give_none_beside_its_output(tmp_path):
    for names, found in run(tuple_errors, 2, tmp_path):
        assert max(found) <= WITHIN, found
        assert names == ["attention.k.weight", "attention.o.weight", "attention.q.weight", "attention.v.weight"]


def tuple_errors():
    """What is split, and the errors of the gradients, those of the bias that is in the tuple too."""
    torch.manual_seed(2)
    single, block = pair(Biased(), Layout(tp=2))
    x = torch.randn(2, 6, 16)
    block(x).square().mean().backward()
    single(x).square().mean().backward()
    named = dict(block.named_parameters())
    split = sorted(name for name, one in named.items() if isinstance(one, DTensor) and one.placements[0].is_shard())
    return split, [distance(whole(named[name].grad), one.grad) for name, one in single.named_parameters()]


class Biased(nn.Module):
    """Its attention takes a learned bias of the scores in a tuple, and gives a pair, as layers of transformers do."""

    def __init__(self):
        super().__init__()
        self.bias, self.attention = nn.Parameter(torch.randn(8, 8)), PairAttention()

    def forward(self, x):
        bias = self.bias[: x.shape[1], : x.shape[1]]
        return x + self.attention(x, (bias, None))[0]


class PairAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x, extra):
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=extra[0])
        return self.o(y.transpose(1, 2).flatten(2)), None
