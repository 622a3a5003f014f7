"""The formula of FlexAttention gives what PyTorch's own gives, and has a gradient; nothing stays replaced."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as of_torch

from prenorm.checks.subject.child.flexible import flexible
from prenorm.checks.subject.child.surroundings import NoGpu

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 4, 5, 7, 16


def by_place(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return score.tanh() + 0.1 * batch - 0.2 * head * (query - key)


def window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (
        (key <= query) & (query - key < 2 + head) & ((query > 0) | (batch > 0))
    )  # the first row of batch 0 sees nothing


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "score_mod": {"score_mod": by_place},
    "block_mask": {"block_mask": of_torch.create_block_mask(window, BATCH, HEADS, QUERIES, KEYS, device="cpu")},
    "both": {
        "score_mod": by_place,
        "block_mask": of_torch.create_block_mask(window, BATCH, HEADS, QUERIES, KEYS, device="cpu"),
    },
}


def drawn(kv_heads: int = HEADS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((BATCH, HEADS, QUERIES, SIZE), (BATCH, kv_heads, KEYS, SIZE), (BATCH, kv_heads, KEYS, SIZE))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("name", OPTIONS)
def test_it_gives_what_pytorch_gives(name: str) -> None:
    notes: dict[str, str] = {}
    expected = of_torch.flex_attention(*drawn(), **OPTIONS[name])
    torch.testing.assert_close(flexible(notes)(*drawn(), **OPTIONS[name]), expected)
    assert "flex_attention" in notes


def test_heads_share_keys_and_the_log_of_the_sum_is_returned() -> None:
    lse = of_torch.AuxRequest(lse=True)
    expected, of_expected = of_torch.flex_attention(*drawn(2), enable_gqa=True, return_aux=lse)
    y, of_y = flexible({})(*drawn(2), enable_gqa=True, return_aux=lse)
    torch.testing.assert_close((y, of_y.lse), (expected, of_expected.lse))


def test_it_has_a_gradient() -> None:
    q, k, v = (one.requires_grad_() for one in drawn())
    flexible({})(q, k, v, **OPTIONS["score_mod"]).sum().backward()
    plain = [one.detach().requires_grad_() for one in (q, k, v)]
    batch, head, query, key = (
        torch.arange(n).view(-1, *[1] * (3 - i)) for i, n in enumerate((BATCH, HEADS, QUERIES, KEYS))
    )
    scores = by_place(plain[0] @ plain[1].transpose(-1, -2) / SIZE**0.5, batch, head, query, key)
    (scores.softmax(-1) @ plain[2]).sum().backward()
    torch.testing.assert_close([one.grad for one in (q, k, v)], [one.grad for one in plain])


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is left out where there is a GPU")
def test_what_asks_for_a_gpu_runs_on_the_cpu_and_nothing_stays_replaced() -> None:
    before = torch.zeros, torch.Tensor.to, torch.Tensor.cuda, torch.nn.Module.cuda, of_torch.flex_attention
    notes: dict[str, str] = {}
    there = NoGpu(notes)
    for _ in range(2):
        with there:
            made = [torch.zeros(2, device="cuda"), torch.ones(2).new_zeros(2, device=torch.device("cuda", 0))]
            made += [torch.tensor([1.0]).cuda(), torch.full((2,), 1.0).to("cuda", torch.float64)]
            made += [torch.nn.Linear(2, 2, device="cuda").cuda().weight]
            with torch.device("meta"):
                assert torch.zeros(2).device.type == "meta"
    assert {one.device.type for one in made} == {"cpu"}
    assert made[3].dtype == torch.float64
    assert notes.keys() == {"cuda", "device"}
    assert before == (torch.zeros, torch.Tensor.to, torch.Tensor.cuda, torch.nn.Module.cuda, of_torch.flex_attention)
