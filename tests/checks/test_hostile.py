"""Hostile submissions, some of them: PRENORM_HOSTILE=all (or `python -m tests.checks.hostile`) runs every one."""

import os
import sys
from collections.abc import Iterator

import pytest

from .hostile.__main__ import ALL
from .hostile.canaries import Canaries, adopting_orphans
from .hostile.harness import SECONDS, passes, run
from .hostile.submission import Submission

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")

SOME = """
    processes/fork_bomb processes/daemon processes/subprocess processes/clone3 processes/threads_without_end
    reads/open reads/symbolic_link reads/parent_environ reads/environment reads/our_package_after_all
    writes/new_file writes/hard_link_out writes/chmod writes/utime_under_test writes/truncate_by_reading
    writes/shared_memory
    network/tcp network/udp network/unix network/abstract network/netlink
    memory/tensors memory/memfd memory/recursion disk/many_files disk/descriptors
    floods/stdout floods/replies floods/a_reply_that_never_ends
    endless/at_import endless/huge_power endless/in_an_exceptions_text
    signals/kill_a_stranger signals/ignore_everything signals/owner_of_a_descriptor
    exits/sys_exit exits/exit_at_once exits/null_pointer exits/thirty_two_bit_call exits/strange_syntax_error
    escapes/unshare escapes/ptrace_the_parent escapes/io_uring
    printed/verdict_and_exit replies/replies_in_advance replies/nested_without_end replies/reply_with_a_verdict
    patches/allclose patches/driver_echoes_the_input patches/inputs_found_and_zeroed patches/our_package_replaced
    lies/object_that_is_equal_to_all lies/tensor_that_claims_equality lies/nan lies/meta lies/shape_of_lies
    classes/right_name_from_elsewhere classes/names_with_escape_codes classes/default_that_is_huge
""".split()  # noqa: SIM905  # one list item a line would fill two screens
IS_EVERYTHING = os.environ.get("PRENORM_HOSTILE") == "all"
LIMIT = SECONDS if IS_EVERYTHING else 2.0
BY_NAME = {one.name: one for one in ALL}
CHOSEN = ALL if IS_EVERYTHING else [BY_NAME[name] for name in SOME]

RIGHT = """
import torch
from torch import nn
from torch.nn import functional as F

class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

def turned(x):
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (half, 2))) * turn).flatten(-2).to(x.dtype)

class TransformerBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2, self.attn, self.ffn = Norm(d_model), Norm(d_model), nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self.attn, name, nn.Linear(d_model, d_model, bias=False))
        self.ffn.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.ffn.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.ffn.down_proj = nn.Linear(d_ff, d_model, bias=False)
    def forward(self, x):
        a, f, n = self.attn, self.ffn, self.norm1(x)
        q, k, v = (p(n).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        y = F.scaled_dot_product_attention(turned(q), turned(k), v)
        h = x + a.o_proj(y.transpose(1, 2).flatten(-2))
        n = self.norm2(h)
        return h + f.down_proj(F.silu(f.gate_proj(n)) * f.up_proj(n))
"""


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    with adopting_orphans():
        made = Canaries(tmp_path_factory.mktemp("canaries"))
        yield made
        made.close()


@pytest.mark.parametrize("submission", CHOSEN, ids=lambda one: one.name)
def test_it_neither_escapes_nor_passes_nor_comes_late(submission: Submission, canaries: Canaries) -> None:
    assert run(submission, canaries, limit=LIMIT).wrong == []


def test_a_right_block_does_pass(canaries: Canaries) -> None:
    file = canaries.submissions / "right.py"
    file.write_text(RIGHT)
    passed, said = passes(file, 60)
    file.unlink()
    assert passed, said


def test_the_canaries_notice_what_no_layer_stops(canaries: Canaries) -> None:
    layers = ("namespaces", "mounts", "landlock", "seccomp")
    for name in ("reads/open", "writes/new_file", "network/tcp", "network/abstract", "signals/kill_a_stranger"):
        assert run(BY_NAME[name], canaries, without=layers).wrong != []


def test_there_are_at_least_200_and_no_two_are_the_same() -> None:
    assert len(BY_NAME) == len(ALL) >= 200
    assert len({(one.code, one.phase) for one in ALL}) == len(ALL)
