"""Model FLOPs utilisation: the share of a machine's rate of matrix products that the model's own operations take."""

import time

import torch
from torch import Tensor

from ..config import ModelConfig
from ..costs import flops
from ..costs.architecture import architecture_of
from ..ops.linear import linear
from .device import Device
from .metrics import Record

SECONDS = 0.5  # for the measurement
CPU_SIDES, GPU_SIDES = (512, 1024, 2048), (2048, 4096, 8192)  # of square matrices


class Utilisation:
    """MFU by both usual definitions, against a rate in FLOPs a second. What checkpointing computes again is no use.

    mfu_causal: products as they are needed, attention only where a query sees a key (costs/flops.py).
    mfu_6n_attention: 6 FLOPs a parameter and token, and attention as a full square (Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B). Both take a row for one document.
    """

    def __init__(self, config: ModelConfig, rate: float) -> None:
        self._model, self._rate = architecture_of(config), rate

    def of(self, context: int, tokens_per_second: float) -> Record:
        """Both shares, for rows of `context` tokens."""
        step = 3 * sum(flops.forward(self._model, 1, context, causal=True).values())
        rule = flops.six_n_and_attention(self._model, context, context)
        each = tokens_per_second / context / self._rate
        return {"mfu_causal": step * each, "mfu_6n_attention": rule * each}


def product_rate(device: Device) -> float:
    """FLOPs a second of a large product, in the number format of the run's products: the highest that is reached.

    Matrices grow as long as the next product ends within half a second. Random numbers of the run are left alone.
    """
    place, start, best = device.device, time.perf_counter(), 0.0
    own = torch.Generator(place).manual_seed(0)  # not zeros: with them a GPU draws less power, and is faster
    for side in GPU_SIDES if place.type == "cuda" else CPU_SIDES:
        x, weight = (torch.randn(side, side, generator=own, device=place).to(device.dtype) for _ in range(2))
        for _ in range(3):  # of which the first may load a library
            seconds = _seconds_of_product(x, weight)
            best = max(best, 2 * side**3 / seconds)
            if time.perf_counter() - start + seconds > SECONDS:
                return best
        if time.perf_counter() - start + 8 * seconds > SECONDS:
            break
    return best


@torch.no_grad()
def _seconds_of_product(x: Tensor, weight: Tensor) -> float:
    before = time.perf_counter()
    linear(x, weight)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - before
