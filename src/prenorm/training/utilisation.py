"""Model FLOPs utilisation: the share of a machine's rate of matrix products that the model's own operations take."""

import time

import torch

from ..config import ModelConfig
from ..costs import flops
from ..costs.architecture import architecture_of
from ..ops.linear import linear
from .device import Device
from .metrics import Record

SECONDS = 0.25  # for the measurement
CPU_PRODUCT, GPU_PRODUCT = (2048, 1024, 1024), (8192, 8192, 8192)  # rows, inner and outer width


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
    """FLOPs a second of a large product, in the run's number format: the best of those that a quarter second has.

    Random numbers of the run are left alone.
    """
    place = device.device
    rows, inner, outer = GPU_PRODUCT if place.type == "cuda" else CPU_PRODUCT
    own = torch.Generator(place).manual_seed(0)  # not zeros: they take a GPU less power, and so less time
    x, weight = (
        torch.randn(shape, generator=own, device=place).to(device.dtype) for shape in ((rows, inner), (outer, inner))
    )
    fastest, start = float("inf"), time.perf_counter()
    with torch.no_grad():
        while True:
            before = time.perf_counter()
            linear(x, weight, None)
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            now = time.perf_counter()
            fastest = min(fastest, now - before)
            if now - start > SECONDS:
                return 2 * rows * inner * outer / fastest
