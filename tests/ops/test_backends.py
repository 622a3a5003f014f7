import importlib

import pytest
import torch

import prenorm.functional as F
from prenorm import ConfigError, TransformerBlock, explain, use_backend
from prenorm.kernels.cpu import native
from prenorm.kernels.cpu.attention import attention
from prenorm.kernels.cpu.attention import unavailable_reason as why_no_attention
from prenorm.kernels.cpu.blocked_attention import blocked_attention
from prenorm.kernels.cpu.linear import bfloat16_unavailable_reason as why_no_bfloat16_linear
from prenorm.kernels.cpu.linear import unavailable_reason as why_no_linear
from prenorm.kernels.cpu.matmul import unavailable_reason as why_no_matmul
from prenorm.kernels.cpu.native import unavailable_reason
from prenorm.kernels.sdpa import sdpa
from prenorm.ops import backends

from ..oracle.inputs import normal

FUSED = f"{sdpa.__module__}.{sdpa.__qualname__}"


class Attend(torch.nn.Module):
    """Attention of x to itself: a module that meets one op."""

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


def what_runs(x):
    return [choice.runs for choice in explain(Attend(), x)]


def test_the_kernel_of_the_table_runs_unless_the_formula_is_asked_for():
    x = normal(1, 3, 4)
    assert what_runs(x) == [FUSED]
    with use_backend("reference"):
        assert what_runs(x) == ["formula"]
        with use_backend("auto"):
            assert what_runs(x) == [FUSED]
        assert what_runs(x) == ["formula"]
    assert what_runs(x) == [FUSED]


def test_the_blocked_kernel_is_for_code_that_is_compiled_where_no_other_is(shapes_unchecked, monkeypatch):
    monkeypatch.setattr("prenorm.kernels.cpu.attention.REASON", "another processor")

    def which(x):
        chosen = backends.choose("scaled_dot_product_attention", x, x, x, None, causal=True, dropout=0.0)
        return x + (1 if chosen is blocked_attention else 2 if chosen in (sdpa, attention) else 3)

    x = torch.zeros(1, 2, 64, 16, dtype=torch.bfloat16)
    assert (which(x) == 2).all()
    assert (torch.compile(which, backend="eager", fullgraph=True)(x) == 1).all()


def test_an_error_inside_leaves_the_backend_as_it_was():
    with pytest.raises(RuntimeError, match="stop"), use_backend("reference"):
        raise RuntimeError("stop")
    assert what_runs(normal(1, 3, 4)) == [FUSED]


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ConfigError, match="auto, reference, not 'fast'"), use_backend("fast"):
        pass


def test_the_table_gives_a_reason_for_every_kernel():
    rows = explain()
    ops = {"scaled_dot_product_attention", "linear", "dropout", "rms_norm", "layer_norm", "decode_step"}
    ops |= {"addmm", "argmax", "cross_entropy", "quantized_linear", "rotate", "silu_gate"}
    assert {row.op for row in rows} == ops
    assert {torch.float64, torch.float32, torch.bfloat16} <= {row.dtype for row in rows}
    for row in rows:
        if row.runs == "formula":  # a machine that has no compiler, or on which MKL is the faster one
            reasons = {why_no_linear(), why_no_bfloat16_linear(), why_no_matmul(), why_no_attention()}
            assert row.why in {unavailable_reason(), *reasons}
            continue
        module, name = row.runs.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), name))
        assert row.why


def test_a_kernel_that_this_machine_lacks_is_listed_with_what_runs_in_its_place(monkeypatch):
    monkeypatch.setattr(native, "_loaded", lambda: native.Native(None, unavailable_reason="there is no compiler"))
    rows = explain()
    attention, *_ = (row for row in rows if row.op == "scaled_dot_product_attention" and row.dtype == torch.float32)
    assert attention.runs == FUSED
    name = "prenorm.kernels.cpu.decode_attention.decode_attention"
    assert attention.why == f"not {name}, because there is no compiler"
    assert attention.instead
    assert {(row.runs, row.why) for row in rows if row.op == "rms_norm"} == {("formula", "there is no compiler")}


def test_a_block_is_explained_op_by_op_each_once_and_untouched():
    block, x = TransformerBlock(8, 2, 16), torch.randn(1, 3, 8)
    choices = explain(block, x, token_positions=torch.tensor([2, 1, 0]))
    assert [(choice.op, choice.device, choice.dtype) for choice in choices] == [
        ("rms_norm", "cpu", torch.float32),  # both norms
        ("linear", "cpu", torch.float32),  # all seven
        ("rotate", "cpu", torch.float32),  # queries and keys
        ("scaled_dot_product_attention", "cpu", torch.float32),
        ("silu_gate", "cpu", torch.float32),
    ]
    assert all(parameter.grad is None for parameter in block.parameters())
    with use_backend("reference"):
        assert "use_backend" in explain(block, x)[0].why


def test_a_formula_says_why_it_runs():
    class Norm(torch.nn.Module):
        def forward(self, x, weight):
            return F.rms_norm(x, weight)

    def why(dtype, weight_dtype):
        (choice,) = explain(Norm(), torch.ones(2, 3, dtype=dtype), torch.ones(3, dtype=weight_dtype))
        assert choice.runs == "formula"
        return choice.why

    with use_backend("reference"):
        assert why(torch.float32, torch.float32) == 'use_backend("reference") asks for it'
    assert why(torch.float64, torch.float64) == "no kernel for this device and dtype"
    assert why(torch.float32, torch.bfloat16) == (unavailable_reason() or "no kernel for inputs like these")


def test_what_was_explained_before_an_error_is_forgotten():
    class Fails(Attend):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        explain(Fails(), normal(1, 3, 4))
    assert what_runs(normal(1, 3, 4)) == [FUSED]


def test_choices_print_with_what_the_alternative_costs():
    x = normal(1, 3, 4)
    (choice,) = choices = explain(Attend(), x)
    assert str(choices) == (
        f"scaled_dot_product_attention (cpu, float64): {FUSED}\n    {choice.why}\n    instead: {choice.instead}"
    )
    with use_backend("reference"):
        assert str(explain(Attend(), x)) == (
            'scaled_dot_product_attention (cpu, float64): formula\n    use_backend("reference") asks for it'
        )
    assert all(row.instead for row in explain() if row.runs != "formula")
