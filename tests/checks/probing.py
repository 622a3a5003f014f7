"""Builds blocks of the corpus, and shows that a faulty one differs from its original in what its fault is about."""

import contextlib
import inspect
import signal
import sys
import types
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from .corpus import Example

D_MODEL, NUM_HEADS, D_FF, MAX_SEQ_LEN = 24, 4, 20, 16
ALIASES = {
    "max_seq_len": ("max_seq_len", "context_length", "block_size", "max_position_embeddings", "n_ctx"),
    "theta": ("theta", "rope_theta", "rope_base", "base"),
    "eps": ("eps", "norm_eps", "rms_norm_eps"),
}


@cache
def module_of(source: str) -> types.ModuleType:
    """The source, imported."""
    name = f"corpus_{zlib.crc32(source.encode()):08x}"
    module = types.ModuleType(name)
    module.__dict__["__package__"] = ""
    sys.modules[name] = module  # dataclasses look themselves up there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the packages that it imports
        exec(compile(source, name, "exec"), module.__dict__)
    return module


def build(example: Example, *, double: bool = True, stretch: float = 1.0, **wanted: Any) -> nn.Module:
    """The block, with the arguments that its constructor has, and random weights that depend on their names alone."""
    make = getattr(module_of(example.source), example.attribute)
    names = inspect.signature(make).parameters
    arguments = {}
    for key, value in {"max_seq_len": MAX_SEQ_LEN, "num_kv_heads": 2, **wanted}.items():
        for name in ALIASES.get(key, (key,)):
            if name in names:
                arguments[name] = value
    block = make(D_MODEL, NUM_HEADS, D_FF, **arguments).eval()
    if double:
        block = block.double()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if parameter.is_meta:
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(stretch * (1 + 0.4 * noise if parameter.ndim == 1 else 1.5 * noise / D_MODEL**0.5))
    return block


def takes(example: Example, name: str) -> bool:
    """Whether forward has this argument."""
    return name in inspect.signature(build(example).forward).parameters


def inputs(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Random vectors in float64, none of them with mean 0."""
    noise = torch.randn(*shape, D_MODEL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * (noise + 0.3)


def random_mask(seq: int) -> Tensor:
    """Every token sees itself, and half of the others."""
    mask = torch.rand(seq, seq, generator=torch.Generator().manual_seed(5)) < 0.5
    return mask | torch.eye(seq, dtype=torch.bool)


def positions_keyword(example: Example) -> str:
    """What forward calls the positions: its second argument."""
    return list(inspect.signature(build(example).forward).parameters)[1]


@torch.no_grad()
def run(block: nn.Module, x: Tensor, **keywords: Any) -> Tensor:
    """The output for a copy of x."""
    return block(x.clone(), **keywords)


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference, measured by the largest number; infinite for NaN or another shape."""
    if one.shape != other.shape or not one.isfinite().all():
        return float("inf")
    return ((one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-300)).item()


def gradients(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of the output, by parameter, and by x under the name "x"; zeros are left out."""
    leaf = x.clone().requires_grad_()
    y = block(leaf.clone())
    found: dict[str, Tensor | None] = {}
    if y.requires_grad:
        (y * inputs(*x.shape[:-1], seed=9)).sum().backward()
        found = {name: parameter.grad for name, parameter in block.named_parameters()}
        found["x"] = leaf.grad
    return {name: gradient for name, gradient in found.items() if gradient is not None and gradient.any()}


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError after this time."""

    def ring(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def raises(action: Callable[[], Any]) -> bool:
    """Whether it raises an error of any kind."""
    try:
        action()
    except Exception:
        return True
    return False


def shows(fault: str, example: Example, reference: Example) -> str | None:
    """None if `example` visibly has this fault beside `reference`, which lacks it; else what was expected in vain."""
    return PROBES.get(fault, other_output)(example, reference)


# One probe a kind of fault: None, or what it did not find.


def _far(example: Example, reference: Example, least: float, x: Tensor, *, built: Any = None, **keywords: Any) -> bool:
    one, other = (build(which, **(built or {})) for which in (example, reference))
    return far(run(one, x, **keywords), run(other, x, **keywords)) > least


def other_output(example: Example, reference: Example) -> str | None:
    return None if _far(example, reference, 1e-3, inputs(2, 7)) else "the output is the same"


def other_for_small_inputs(example: Example, reference: Example) -> str | None:
    for scale, eps in ((1e-2, 1e-3), (1e-3, 1e-6), (1e-3, 1e-5), (0.3, 0.1)):
        if _far(example, reference, 1e-3, inputs(2, 7, scale=scale), built={"eps": eps}):
            return None
    return "eps does what it should"


def other_for_theta(example: Example, reference: Example) -> str | None:
    return None if _far(example, reference, 1e-3, inputs(2, 12), built={"theta": 50.0}) else "theta has an effect"


def other_for_positions(example: Example, reference: Example) -> str | None:
    keyword = {positions_keyword(reference): torch.tensor([3, 1, 0, 9, 15, 4, 4])}
    return None if _far(example, reference, 1e-3, inputs(2, 7), **keyword) else "positions have an effect"


def other_or_no_last_position(example: Example, reference: Example) -> str | None:
    x = inputs(MAX_SEQ_LEN)
    assert run(build(reference), x).isfinite().all()
    if raises(lambda: run(build(example), x)):
        return None
    return other_output(example, reference)


def other_for_masks(example: Example, reference: Example) -> str | None:
    x = inputs(2, 7)
    if takes(reference, "mask") and _far(example, reference, 1e-3, x, mask=random_mask(7)):
        return None
    if _far(example, reference, 1e-3, x, built={"causal": True}):
        return None
    return "masks do what they should"


def other_for_large_scores(example: Example, reference: Example) -> str | None:
    keywords = {"mask": random_mask(7)} if takes(reference, "mask") else {}
    for causal in (False, True):
        built = {"stretch": 200.0, "causal": causal}
        if _far(example, reference, 1e-3, inputs(2, 7), built=built, **keywords):
            return None
    return "masked tokens are not seen, however large the scores"


def other_in_half_precision(example: Example, reference: Example) -> str | None:
    one, other = (build(which, double=False, dtype=torch.float16) for which in (example, reference))
    x = inputs(2, 7, scale=400.0).half()
    y = run(other, x)
    assert y.dtype == torch.float16
    assert y.isfinite().all()
    return None if far(run(one, x) - x, y - x) > 0.1 else "the norm does not overflow in float16"


def other_at_far_positions(example: Example, reference: Example) -> str | None:
    x = inputs(2, 600)
    for dtype, least in ((torch.float32, 1e-4), (torch.bfloat16, 5e-3)):
        built = {"double": False, "dtype": dtype, "max_seq_len": 600}
        if _far(example, reference, least, x.to(dtype), built=built):
            return None
    return "angles are as precise as they should be"


def other_gradient(example: Example, reference: Example) -> str | None:
    if _far(example, reference, 1e-6, inputs(2, 7)):
        return "the output should be the same"
    one, other = (gradients(build(which), inputs(2, 7)) for which in (example, reference))
    if one.keys() != other.keys():
        return "no gradient should be missing"
    return None if any(far(one[name], other[name]) > 1e-3 for name in other) else "the gradient is the same"


def fewer_gradients(example: Example, reference: Example) -> str | None:
    one, other = (gradients(build(which), inputs(2, 7)) for which in (example, reference))
    return None if other.keys() - one.keys() else "no gradient is missing"


def other_leading_dims(example: Example, reference: Example) -> str | None:
    if _far(example, reference, 1e-6, inputs(2, 7)):
        return "with one batch axis it should be right"
    for shape in ((7,), (2, 3, 7)):
        if raises(partial(run, build(example), inputs(*shape))):
            return None
        if _far(example, reference, 1e-3, inputs(*shape)):
            return None
    return "it takes any leading dims"


def changed_input(example: Example, reference: Example) -> str | None:
    x = inputs(2, 7)
    with torch.no_grad():
        build(example)(x)
    return "x is left alone" if torch.equal(x, inputs(2, 7)) else None


def random_output(example: Example, reference: Example) -> str | None:
    block, other = build(example, dropout=0.3), build(reference, dropout=0.3)
    x = inputs(2, 7)
    assert torch.equal(run(other, x), run(other, x))
    first = run(block, x)
    return None if any(not torch.equal(first, run(block, x)) for _ in range(5)) else "it is deterministic"


def other_dtype(example: Example, reference: Example) -> str | None:
    x = inputs(2, 7).bfloat16()
    assert run(build(reference, double=False, dtype=torch.bfloat16), x).dtype == torch.bfloat16
    y = run(build(example, double=False, dtype=torch.bfloat16), x)
    return "bfloat16 stays bfloat16" if y.dtype == torch.bfloat16 else None


def runs_on_meta(example: Example) -> bool:
    """Whether the block runs on the meta device: moved there, or built there with every tensor where it belongs."""

    def moved() -> None:
        block = build(example, double=False)
        run(block, inputs(2, 7).float())  # what is made at the first call should move, too
        y = run(block.to("meta"), inputs(2, 7).float().to("meta"))
        assert y.is_meta

    def made_there() -> None:
        block = build(example, double=False, device="meta")
        if "device" in inspect.signature(getattr(module_of(example.source), example.attribute)).parameters:
            assert all(tensor.is_meta for tensor in [*block.parameters(), *block.buffers()])
            assert run(block, inputs(2, 7).float().to("meta")).is_meta

    return not raises(moved) and not raises(made_there)


def left_behind(example: Example, reference: Example) -> str | None:
    assert runs_on_meta(reference)
    return "every tensor moves" if runs_on_meta(example) else None


def some_lengths_only(example: Example, reference: Example) -> str | None:
    def lengths(which: Example) -> set[int]:
        block = build(which)
        return {seq for seq in range(1, MAX_SEQ_LEN + 1) if not raises(partial(run, block, inputs(2, seq)))}

    return None if lengths(reference) - lengths(example) else "it takes every length"


def coupled(example: Example, reference: Example) -> str | None:
    x, other = inputs(3, 7), inputs(3, 7)
    other[1:] = inputs(2, 7, seed=3)
    block = build(reference)
    assert torch.equal(run(block, x)[0], run(block, other)[0])
    block = build(example)
    return None if far(run(block, x)[0], run(block, other)[0]) > 1e-3 else "sequences do not see each other"


def remembering(example: Example, reference: Example) -> str | None:
    block, fresh = build(example), build(example)
    run(block, inputs(2, 7, seed=3))
    return None if far(run(block, inputs(2, 7)), run(fresh, inputs(2, 7))) > 1e-3 else "nothing is remembered"


def not_importable(example: Example, reference: Example) -> str | None:
    module_of(reference.source)
    return None if raises(lambda: module_of(example.source)) else "it can be imported"


def not_constructible(example: Example, reference: Example) -> str | None:
    build(reference)
    make = getattr(module_of(example.source), example.attribute)
    return None if raises(lambda: make(D_MODEL, NUM_HEADS, D_FF)) else "it can be built"


def no_output(example: Example, reference: Example) -> str | None:
    x = inputs(2, 7)
    block = build(example)
    with contextlib.suppress(Exception):
        y = block(x)
        if isinstance(y, Tensor) and y.shape == x.shape:
            return "it gives an output"
    return None


def endless(example: Example, reference: Example) -> str | None:
    with contextlib.suppress(TimeoutError), time_limit(0.3):
        run(build(example), inputs(2, 7))
        return "it comes to an end"
    return None


PROBES: dict[str, Callable[[Example, Example], str | None]] = {
    "eps_ignored": other_for_small_inputs,
    "wrong_eps": other_for_small_inputs,
    "eps_outside_sqrt": other_for_small_inputs,
    "rope_theta_ignored": other_for_theta,
    "token_positions_ignored": other_for_positions,
    "positions_off_by_one": other_or_no_last_position,
    "mask_inverted": other_for_masks,
    "mask_ignored": other_for_masks,
    "mask_value_too_small": other_for_large_scores,
    "norm_without_upcast": other_in_half_precision,
    "rope_bf16_tables": other_at_far_positions,
    "residual_detached": other_gradient,
    "gradient_wrong": other_gradient,
    "gradient_missing": fewer_gradients,
    "leading_dims": other_leading_dims,
    "modifies_input": changed_input,
    "not_deterministic": random_output,
    "dropout_in_eval": random_output,
    "wrong_dtype": other_dtype,
    "wrong_device_buffer": left_behind,
    "sequence_length_fixed": some_lengths_only,
    "batch_coupled": coupled,
    "retains_state": remembering,
    "import_error": not_importable,
    "constructor_error": not_constructible,
    "forward_error": no_output,
    "timeout": endless,
}
