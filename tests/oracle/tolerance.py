"""How near is near enough: the numerics contract, written once."""

import numpy as np
import torch
from torch import Tensor

from .formulas import Array

Numbers = Array | float | list[float] | list[list[float]]

# Rounding errors add up at most one per term, and no test sums more than 4096 terms in a row.
TERMS = 2**12
# The root mean square of fewer errors is a matter of chance, and chance differs from one CPU to the next.
FEW = 64


def assert_accurate(actual: Tensor, oracle: Numbers, plain: Tensor | None = None) -> None:
    """The contract: the RMS error is at most twice the plain formula's in the same dtype + eps x rms of the oracle.

    Without `plain` the plain formula is taken at its best: computed exactly and rounded to the dtype once.
    """
    oracle = np.asarray(oracle, dtype=np.float64)
    assert oracle.size == 0 or oracle.size >= FEW, "too few numbers for a root mean square: assert_rounding_alone"
    if plain is None:
        plain = torch.from_numpy(oracle).to(actual.dtype)
    assert actual.dtype == plain.dtype
    limit = 2 * error(plain, oracle) + torch.finfo(actual.dtype).eps * rms(oracle)
    assert error(actual, oracle) <= limit, f"RMS error {error(actual, oracle):.3g} is more than {limit:.3g}"


def assert_rounded_once(actual: Tensor, oracle: Numbers) -> None:
    """Computed in float32 or wider and rounded to the dtype last: for bfloat16 much stricter than the contract.

    float32's own errors are 2^-16 of a bfloat16 step, so next to the last rounding nothing else shows.
    """
    oracle = np.asarray(oracle, dtype=np.float64)
    if actual.dtype in (torch.float64, torch.float32):
        assert_close(actual, oracle)
        return
    assert oracle.size == 0 or oracle.size >= FEW, "too few numbers for a root mean square"
    best = error(torch.from_numpy(oracle).to(actual.dtype), oracle)
    assert error(actual, oracle) <= 1.01 * best, f"RMS error {error(actual, oracle):.4g}, rounded once {best:.4g}"


def assert_exact(actual: Tensor, oracle: Numbers) -> None:
    """In float64 there is nothing but rounding between a formula and its oracle."""
    assert actual.dtype == torch.float64
    assert_rounding_alone(actual, oracle, torch.float64)


def assert_rounding_alone(actual: Tensor, oracle: Numbers, dtype: torch.dtype, *, terms: int = TERMS) -> None:
    """Nothing but rounding to `dtype` along the way, at most once a term, stands between a result and its oracle."""
    oracle = np.asarray(oracle, dtype=np.float64)
    limit = terms * torch.finfo(dtype).eps * rms(oracle)
    assert error(actual, oracle) <= limit, f"RMS error {error(actual, oracle):.3g} is more than {limit:.3g}"


def assert_close(actual: Tensor, oracle: Numbers, plain: Tensor | None = None) -> None:
    """`assert_exact` in float64, `assert_accurate` in narrower dtypes."""
    if actual.dtype == torch.float64:
        assert_exact(actual, oracle)
    else:
        assert_accurate(actual, oracle, plain)


def error(actual: Tensor, oracle: Array) -> float:
    """The root mean square of the difference; the shapes must be the same."""
    assert tuple(actual.shape) == oracle.shape
    return rms(array(actual) - oracle)


def rms(x: Array) -> float:
    """The root mean square, 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def array(x: Tensor) -> Array:
    """The tensor's numbers as float64."""
    return x.detach().to(torch.float64).numpy()
