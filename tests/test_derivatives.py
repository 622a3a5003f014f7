"""Derivatives beyond first gradients: second derivatives, torch.func, forward mode; for every op and backend."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import prenorm
from prenorm import ModelConfig, RangeError, TransformerLM
from prenorm import functional as F
from prenorm.kernels.cpu import attention as attention_kernel
from prenorm.kernels.cpu import linear as linear_kernel
from prenorm.kernels.cpu.blocked_attention import blocked_attention
from prenorm.ops import backends

# What PyTorch loads for forward mode uses torch.jit.script, which it has deprecated itself.
# So it has making an object of a Function, which it does while it compiles one.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

VOCAB, SEQ = 50, 9
DTYPES = [torch.float64, torch.float32]


class Loss(nn.Module):
    """`loss` as a forward, for functional_call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, targets, **options):
        return self.model.loss(ids, targets, **options)


def lm(dtype=torch.float64, **options):
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=VOCAB, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, **options)
    return TransformerLM(config, dtype=dtype)


def tokens(rows=3):
    torch.manual_seed(1)
    return torch.randint(0, VOCAB, (rows, SEQ)), torch.randint(0, VOCAB, (rows, SEQ))


def attend(q, k, v, mask=None, **options):
    return F.scaled_dot_product_attention(q, k, v, mask, **options)


# Shapes that kernels take: head_dim of 16 and 4,096 scores, 2**15 numbers of a gate, many rows of a product.
OPS: dict[str, Any] = {
    "linear": (lambda x, w: F.linear(x, w), [(64, 48), (32, 48)]),
    "rms_norm": (lambda x, w: F.rms_norm(x, w), [(5, 48), (48,)]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, w, b), [(5, 48), (48,), (48,)]),
    "rope": (lambda x: F.rope(x), [(2, 5, 16)]),
    "swiglu": (lambda x, g, u, d: F.swiglu(x, g, u, d), [(256, 8), (128, 8), (128, 8), (8, 128)]),
    "attention": (lambda q, k, v: attend(q, k, v, causal=True), [(1, 2, 64, 16), (1, 1, 64, 16), (1, 1, 64, 16)]),
    "odd attention": (lambda q, k, v: attend(q, k, v, causal=True), [(1, 2, 6, 10), (1, 1, 6, 10), (1, 1, 6, 10)]),
    "masked attention": (
        lambda q, k, v: attend(q, k, v, torch.arange(6)[:, None] > torch.arange(6)),  # the first query sees nothing
        [(1, 2, 6, 10), (1, 2, 6, 10), (1, 2, 6, 10)],
    ),
    "cross_entropy": (lambda x: F.cross_entropy(x, torch.arange(5)), [(5, 7)]),
    "linear_cross_entropy": (lambda x, w: F.linear_cross_entropy(x, w, torch.arange(5)), [(5, 12), (7, 12)]),
}


def inputs(shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def penalty(op, leaves):
    """The gradients of the sum of squares of the gradients, which are made with an incoming gradient of ones."""
    first = torch.autograd.grad((op(*leaves) * 1.5).sum(), leaves, create_graph=True)
    if not any(one.requires_grad for one in first):  # a linear op of one input: its gradient is a constant
        return [None] * len(leaves)
    return torch.autograd.grad(sum(one.square().sum() for one in first), leaves, allow_unused=True)


def hessian_vector(op, leaves):
    """The product of the Hessian of the sum of squares with a vector of ones."""
    y = op(*leaves)
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(one.sum() for one in first), leaves)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("second", [penalty, hessian_vector])
@pytest.mark.parametrize("name", OPS)
def test_second_derivatives_are_those_of_the_formula_in_float64(name, second, dtype):
    op, shapes = OPS[name]
    with prenorm.use_backend("reference"):
        right = second(op, inputs(shapes))
    found = second(op, inputs(shapes, dtype))
    for one, other in zip(found, right, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one.double(), other, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-4)


@pytest.mark.parametrize("name", OPS)
def test_under_torch_func_and_forward_mode_every_op_is_its_formula_with_the_right_slope(name):
    op, shapes = OPS[name]
    leaves = [x.detach() for x in inputs(shapes)]
    directions = [torch.ones_like(x) for x in leaves]
    with prenorm.use_backend("reference"):
        held = [x.clone().requires_grad_() for x in leaves]
        first = torch.autograd.grad(op(*held).sum(), held)
    backends._record = []
    try:
        slope = jvp(lambda *given: op(*given).sum(), tuple(leaves), tuple(directions))[1]
        found = grad(lambda *given: op(*given).sum(), argnums=tuple(range(len(leaves))))(*leaves)
        rows = vmap(op)(*(torch.stack([x, x]) for x in leaves))
        assert {choice.runs for choice in backends._record} <= {"formula"}
    finally:
        backends._record = None
    torch.testing.assert_close(slope, sum(one.sum() for one in first))
    torch.testing.assert_close(found, first)
    torch.testing.assert_close(rows[1], op(*leaves))


@pytest.mark.parametrize("tied", [False, True])
def test_second_derivatives_of_the_loss_are_those_of_the_plain_pair(tied):
    model, (ids, targets) = lm(tie_embeddings=tied), tokens()
    found = []
    for loss in (model.loss(ids, targets), F.cross_entropy(model(ids), targets)):
        (first,) = torch.autograd.grad(loss, model.embedding.weight, create_graph=True)
        second = torch.autograd.grad(100 * first.square().sum(), list(model.parameters()))
        found.append([first, *second])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_tensor_may_be_query_key_and_value(dropout):
    q = torch.randn(1, 1, 4, 10, dtype=torch.float64, requires_grad=True)

    def dropped_alike(q):
        torch.manual_seed(0)
        return attend(q, q, q, dropout=dropout)

    assert torch.autograd.gradcheck(dropped_alike, q)
    assert torch.autograd.gradgradcheck(dropped_alike, q)
    (first,) = torch.autograd.grad(dropped_alike(q).sum(), q)
    (again,) = torch.autograd.grad(dropped_alike(q).sum(), q, create_graph=True)
    torch.testing.assert_close(again, first)


COMPILED = {"linear": linear_kernel, "attention": attention_kernel}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_kernels_say_that_they_have_no_second_derivative(name):
    if COMPILED[name].unavailable_reason():
        pytest.skip("another kernel runs on this processor")
    op, shapes = OPS[name]
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="compiled code has first derivatives only"):
        hessian_vector(torch.compile(op, backend="eager"), inputs(shapes, torch.float32))


# One without a kernel in C++ included: the attention that compiled code has in bfloat16 on other processors.
BLOCKED = lambda q, k, v: blocked_attention(q, k, v, None, causal=True)  # noqa: E731
GRAPHS: Any = OPS | {"blocked attention": (BLOCKED, [(1, 2, 160, 16)] * 3)}


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_never_leaves_second_derivatives_out_of_a_sum(name, dtype):
    """backend="eager" is the one where PyTorch itself does not refuse them."""
    op, shapes = GRAPHS[name]

    def second(op, leaves):
        first = torch.autograd.grad(op(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(one.sum() for one in first) + sum(x.pow(3).sum() for x in leaves), leaves)

    torch.compiler.reset()
    try:
        found = second(torch.compile(op, backend="eager"), inputs(shapes, dtype))
    except RuntimeError as error:
        assert "first derivatives only" in str(error) or "is not implemented" in str(error)  # noqa: PT017
    else:
        with prenorm.use_backend("reference"):
            right = second(OPS[name][0], inputs(shapes))
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["blocked attention", "linear_cross_entropy"])
def test_gradients_of_a_graph_carry_no_graph_of_their_own(name, backend):
    op, shapes = GRAPHS[name]
    leaves, again = inputs(shapes), inputs(shapes)
    op(*leaves).square().sum().backward()
    torch.compiler.reset()
    torch.compile(op, backend=backend)(*again).square().sum().backward()
    for x, y in zip(leaves, again, strict=True):
        assert not y.grad.requires_grad
        torch.testing.assert_close(y.grad, x.grad)


def test_gradients_of_each_row_are_those_of_the_row_alone():
    model, (ids, targets) = lm(), tokens()
    module = Loss(model)
    params = {name: p.detach() for name, p in module.named_parameters()}

    def of_a_row(params, row, target):
        return functional_call(module, params, (row[None], target[None]))

    rows = vmap(grad(of_a_row), (None, 0, 0))(params, ids, targets)
    for i in range(len(ids)):
        alone = torch.autograd.grad(model.loss(ids[i : i + 1], targets[i : i + 1]), list(model.parameters()))
        torch.testing.assert_close([x[i] for x in rows.values()], list(alone))


def test_the_slope_of_the_loss_in_forward_mode_is_that_of_its_gradient():
    model, (ids, targets) = lm(), tokens()
    module = Loss(model)
    params = {name: p.detach() for name, p in module.named_parameters()}

    def loss(params):
        return functional_call(module, params, (ids, targets))

    slope = jvp(loss, (params,), (params,))[1]
    torch.testing.assert_close(slope, sum((g * params[name]).sum() for name, g in grad(loss)(params).items()))


def test_vmap_and_make_fx_of_a_model_give_its_logits():
    model, (ids, _) = lm(torch.float32), tokens()
    torch.testing.assert_close(vmap(model)(ids), model(ids))
    torch.testing.assert_close(make_fx(model)(ids)(ids), model(ids))


def test_a_model_is_made_and_runs_on_fake_tensors():
    with FakeTensorMode():
        model, ids = lm(torch.float32).train(), torch.zeros(2, SEQ, dtype=torch.int64)
        assert model(ids, segment_ids=ids).shape == (2, SEQ, VOCAB)
        model.loss(ids, ids, use_checkpointing=True).backward()
        cache = model.make_cache(2, SEQ)
        model(ids[:, 1:], segment_ids=ids[:, 1:], cache=cache)
        assert model(ids[:, :1], cache=cache).shape == (2, 1, VOCAB)


def test_a_wrong_id_or_position_is_told_under_vmap_too():
    model, (ids, _) = lm(torch.float32), tokens()
    with pytest.raises(RangeError, match="token ids must be in"):
        vmap(model)(ids + VOCAB)
    with pytest.raises(RangeError, match="positions must be in"):
        vmap(model)(ids, torch.arange(SEQ).expand(3, SEQ) + 5000)
