import pytest

from prenorm.challenge.build import PARTS, build, judge_parts
from prenorm.challenge.parts.judging import LEFT_OUT, NOT_WRITTEN, RIGHT, WRONG
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.subject.protocol import EndedError

from ..conftest import SOLUTIONS
from ..fake import judge_numbers, open_local

PLAIN = (SOLUTIONS / "plain.py").read_text()

FUSED = """
import torch
from torch import nn

class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        self.both = nn.Parameter(torch.zeros(d_model, 2 * d_ff))
        self.back = nn.Parameter(torch.zeros(d_ff, d_model))

    def forward(self, x):
        up, gate = (x @ self.both).chunk(2, -1)
        return (nn.functional.silu(gate) * up) @ self.back

class SelfAttention(nn.Module):
    def __init__(self, d_model, num_heads, max_seq_len=2048, rope_theta=10000.0, device=None, dtype=None):
        super().__init__()
        from math import log
        self.heads, self.theta = num_heads, rope_theta
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, token_positions=None):
        p = torch.arange(x.shape[-2]) if token_positions is None else token_positions
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for z in self.qkv(x).chunk(3, -1))
        angles = p[:, None] * self.theta ** (-torch.arange(0, q.shape[-1], 2) / q.shape[-1])
        table = torch.polar(torch.ones_like(angles), angles)
        q, k = (torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * table for z in (q, k))
        q, k = torch.view_as_real(q), torch.view_as_real(k)
        y = nn.functional.scaled_dot_product_attention(q.flatten(-2), k.flatten(-2), v)
        return self.out(y.transpose(-2, -3).flatten(-2))
"""


def part_of(text, name, tmp_path):
    file = tmp_path / "layers.py"
    file.write_text(text)
    (part,) = judge_parts(file, [name], open_subject=open_local)
    return part


@pytest.mark.parametrize("name", PARTS)
def test_right_parts_are_right(name, tmp_path):
    assert part_of(PLAIN, name, tmp_path).state == RIGHT


@pytest.mark.parametrize("name", ["SwiGLU", "SelfAttention"])
def test_weights_may_be_fused_or_turned(name, tmp_path):
    part = part_of(FUSED, name, tmp_path)
    assert (part.state, part.reason) == (RIGHT, "")


def test_a_stub_is_not_written_yet_and_what_is_missing_is_left_out(workspace):
    states = {part.state for part in judge_parts(workspace.layers, PARTS, open_subject=open_local)}
    assert states == {NOT_WRITTEN}
    terse = judge_parts(SOLUTIONS / "terse.py", PARTS, open_subject=open_local)
    assert {part.state for part in terse} == {LEFT_OUT}


def test_a_part_that_needs_an_unwritten_one_is_not_written_either(tmp_path):
    text = PLAIN.replace("return x @ self.weight.T", "raise NotImplementedError")
    assert part_of(text, "SwiGLU", tmp_path).state == NOT_WRITTEN


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("Linear", "x @ self.weight.T", "x @ self.weight.T + 1", "the numbers are wrong"),
        ("Linear", "x @ self.weight.T", "(x @ self.weight.T)[0]", "the output has shape"),
        ("Linear", "in_features, device", "in_features + 1, device", "raises RuntimeError"),
        ("RMSNorm", "wide / rms", "(wide - wide.mean(-1, keepdim=True)) / rms", "the numbers are wrong"),
        ("RMSNorm", "wide = x.to(", "x = x - x.mean(-1, keepdim=True)\n        wide = x.to(", "LayerNorm"),
        ("RMSNorm", "torch.sqrt(wide", "(wide", "mean square instead of its root"),
        ("RMSNorm", "keepdim=True) + self.eps)", "keepdim=True)) + self.eps", "eps is added to the root"),
        ("RMSNorm", " + self.eps", "", "a different eps"),
        ("RMSNorm", " * self.weight", "", "has no weight, or does not use it"),
        ("RMSNorm", ".mean(dim=-1", ".sum(dim=-1", "something other than the root mean square"),
        ("RMSNorm", ".mean(dim=-1", ".mean(dim=-2", "over the tokens"),
        ("RMSNorm", "x.to(torch.promote_types(x.dtype, torch.float32))", "x", "float16 numbers around 1000"),
        ("RMSNorm", ".to(in_dtype)", "", "for float16 input the output is torch.float32"),
        ("RMSNorm", "torch.ones(d_model, device", "torch.zeros(d_model, device", "with its initial weight"),
        ("RMSNorm", "in_dtype = x.dtype", "x.mul_(2)\n        in_dtype = x.dtype", "forward changes the caller's x"),
        ("SwiGLU", "functional.silu", "functional.relu", "relu instead of silu"),
        ("SwiGLU", "functional.silu", "functional.gelu", "gelu instead of silu"),
        ("SwiGLU", "silu(self.gate_proj(x)) *", "silu(self.gate_proj(x) *", "'(' was never closed"),
        (
            "SwiGLU",
            "silu(self.gate_proj(x)) * self.up_proj(x)",
            "silu(self.gate_proj(x) * self.up_proj(x))",
            "applied to the product",
        ),
        ("SwiGLU", " * self.up_proj(x)", "", "up(x) left out"),
        (
            "SwiGLU",
            "up_proj = Linear(d_model, d_ff",
            "up_proj = nn.Linear(d_model, d_ff",
            "it should have three weights",
        ),
        ("RotaryEmbedding", "even * cos - odd * sin, even * sin + odd", "even * cos + odd * sin, odd", "wrong"),
        ("RotaryEmbedding", "angles.sin()", "-angles.sin()", "by minus the angle"),
        ("RotaryEmbedding", "= theta **", "= 10000.0 **", "rope_theta has no effect"),
        ("RotaryEmbedding", "/ head_dim)", "/ head_dim / 2)", "frequencies are not"),
        ("RotaryEmbedding", "if token_positions is None", "if True", "token_positions have no effect"),
        (
            "RotaryEmbedding",
            "angles = torch.arange(max_seq_len",
            "angles = torch.arange(1, max_seq_len + 1",
            "neighbouring position",
        ),
        ("SelfAttention", " / math.sqrt(self.head_dim)", "", "scores are not divided"),
        ("SelfAttention", "math.sqrt(self.head_dim)", "self.head_dim", "something other than 1/sqrt(head_dim)"),
        ("SelfAttention", "math.sqrt(self.head_dim)", "math.sqrt(x.shape[-1])", "divided by sqrt(d_model)"),
        ("SelfAttention", "k = self.rope(k, token_positions)", "pass", "only queries or only keys"),
        ("SelfAttention", "q = self.rope(q, token_positions)", "pass", "only queries or only keys"),
        ("SelfAttention", "scores, dim=-1", "scores, dim=-2", "softmax does not run over the keys"),
        ("SelfAttention", "return self.o_proj(", "return (", "no output projection"),
        ("SelfAttention", "attended.transpose(-3, -2)", "attended", "not concatenated"),
        ("SelfAttention", "self.o_proj = Linear(d_model, d_model", "self.o_proj = nn.Linear(d_model, d_model", "bias"),
        ("SelfAttention", "k.transpose(-2, -1)", "k.mT.flip(-1)", "no common mistake explains it"),
    ],
)
def test_a_mistake_is_named(name, old, new, reason, tmp_path):
    assert old in PLAIN
    part = part_of(PLAIN.replace(old, new), name, tmp_path)
    assert part.state == WRONG
    assert reason in part.reason


def test_build_passes_three_ways_of_writing_it():
    for name in ("plain", "terse", "inplace"):
        assert build(SOLUTIONS / f"{name}.py", judge_whole=judge_numbers, open_subject=open_local).passed


def test_build_of_a_new_workspace_says_that_the_block_is_missing(workspace):
    result = build(workspace.layers, judge_whole=judge_numbers, open_subject=open_local)
    assert not result.passed
    assert result.verdict is None
    assert result.to_json()["block"] is None


def test_a_wrong_part_fails_the_build_of_a_right_block(tmp_path):
    unused = "\n\nclass SwiGLU(nn.Module):\n    def __init__(self, d_model, d_ff):\n        super().__init__()\n"
    file = tmp_path / "layers.py"
    file.write_text((SOLUTIONS / "terse.py").read_text() + unused)
    result = build(file, judge_whole=judge_numbers, open_subject=open_local)
    assert result.verdict.passed
    assert not result.passed


def test_a_process_that_ends_is_one_parts_fault(tmp_path):
    class Ends(LocalSubject):
        def ask(self, request):
            if request.get("name") == "SwiGLU":
                raise EndedError("died", "signal 9")
            return super().ask(request)

    import contextlib

    file = tmp_path / "layers.py"
    file.write_text(PLAIN)
    opened = []

    @contextlib.contextmanager
    def open_one(folder):
        opened.append(folder)
        yield Ends()

    parts = judge_parts(file, PARTS, open_subject=open_one)
    assert [part.state for part in parts] == [RIGHT, RIGHT, WRONG, RIGHT, RIGHT]
    assert "died: signal 9" in parts[2].reason
    assert len(opened) == 2
