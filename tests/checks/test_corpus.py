"""The corpus is what it says it is: right blocks are right, and faulty ones have their fault."""

import os
from collections import Counter

import pytest
import torch

from prenorm.checks.faults import CONVENTIONS, FAULTS

from .corpus import Example, faulty, original, right
from .layouts import Conventions, block, conventions, weights
from .probes import (
    D_MODEL,
    MAX_SEQ_LEN,
    build,
    far,
    gradients,
    inputs,
    positions_keyword,
    random_mask,
    run,
    runs_on_meta,
    shows,
    takes,
)

EVERYTHING = bool(os.environ.get("PRENORM_ALL_CHECKS"))
FATAL = {"import_error", "constructor_error", "forward_error", "timeout"}
TARGETS = {
    "prenorm": Conventions(interleaved=True, causal=False),
    "llama": Conventions(interleaved=False, causal=True),
}
RIGHT = [example for example in right() if not example.style.startswith("real")]


def some(examples: list[Example], every: int) -> list:
    """All of them where asked for, else one in so many, a different phase for each style."""
    return [
        pytest.param(example, id=example.name)
        for number, example in enumerate(examples)
        if EVERYTHING or number % every == 0
    ]


def parameters(block: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(block.named_parameters())


def test_the_corpus_is_large_and_covers_every_fault():
    counts = Counter(fault for example in faulty() for fault in example.faults)
    assert len(faulty()) >= 320
    assert len(right()) >= 60
    assert {fault for fault in FAULTS if counts[fault] < 3} == {"unexplained"}
    assert len({example.style for example in faulty()}) >= 12


def test_names_are_unique_and_labels_are_ids():
    examples = faulty() + right()
    assert [name for name, count in Counter(example.name for example in examples).items() if count > 1] == []
    for example in examples:
        assert example.faults | example.also_named <= FAULTS.keys()
        assert example.target in {None, *TARGETS}
        assert (example.target is not None) == bool(
            example.faults & CONVENTIONS or "rope_wrong_direction" in example.faults
        )
    assert all(example.faults for example in faulty())
    assert not any(example.faults for example in right())


def test_every_source_compiles():
    for example in faulty() + right():
        if "import_error" not in example.faults:
            compile(example.source, example.name, "exec")


@pytest.mark.parametrize("example", some(RIGHT, 4))
def test_a_right_block_is_the_papers(example):
    made = build(example)
    free = conventions(example.name)
    its = weights(example.name, parameters(made))
    for shape in ((7,), (2, 7), (2, 3, 7), (2, 1), (1, MAX_SEQ_LEN)):
        x = inputs(*shape)
        assert far(run(made, x), block(x, its, free)) < 1e-6
    name = positions_keyword(example)
    for positions in (torch.tensor([3, 1, 0, 9, 15, 4, 4]), torch.arange(14).view(2, 7)):
        assert far(run(made, inputs(2, 7), **{name: positions}), block(inputs(2, 7), its, free, positions)) < 1e-6
    if takes(example, "mask"):
        mask = random_mask(7)
        assert far(run(made, inputs(2, 7), mask=mask), block(inputs(2, 7), its, free, mask=mask)) < 1e-6


@pytest.mark.parametrize("example", some(RIGHT, 4))
def test_a_right_block_behaves(example):
    made = build(example, dropout=0.3)
    x = inputs(2, 7)
    assert torch.equal(run(made, x), run(made, x))
    assert runs_on_meta(example)
    low = build(example, double=False, dtype=torch.bfloat16)
    if next(low.parameters()).dtype == torch.bfloat16:
        y = run(low, x.bfloat16())
        assert y.dtype == torch.bfloat16
        # Two roundings an operation, some ten operations in a row, is a few times the dtype's resolution.
        low_parameters = {name: p.double() for name, p in low.named_parameters()}
        exact = block(x.bfloat16().double(), weights(example.name, low_parameters), conventions(example.name))
        assert far(y, exact) < 0.03
    leaf = x.clone().requires_grad_()
    its = weights(example.name, parameters(made))
    (block(leaf, its, conventions(example.name)) * inputs(2, 7, seed=9)).sum().backward()
    exact_gradients = {name: p.grad for name, p in made.named_parameters()} | {"x": leaf.grad}
    made.zero_grad()
    found = gradients(build(example), x)
    assert found.keys() == exact_gradients.keys()
    assert max(far(found[name], exact) for name, exact in exact_gradients.items()) < 1e-5


@pytest.mark.parametrize("example", some([e for e in faulty() if e.target is None and len(e.faults) == 1], 7))
def test_a_faulty_block_differs_in_what_its_fault_is_about(example):
    (fault,) = example.faults
    assert shows(fault, example, original(example)) is None


@pytest.mark.parametrize("example", some([e for e in faulty() if e.target is not None], 3))
def test_a_block_with_another_convention_is_right_but_for_the_target(example):
    made = build(example)
    target = TARGETS[example.target]
    its = parameters(made)
    assert (
        far(run(made, inputs(2, 7)), run(build(original(example)), inputs(2, 7))) > 1e-3
        or not example.source != original(example).source
    )


@pytest.mark.parametrize("example", some([e for e in faulty() if not e.faults & (FATAL | {"leading_dims"})], 7))
def test_every_other_faulty_block_takes_any_leading_dims(example):
    made = build(example)
    seq = MAX_SEQ_LEN if "sequence_length_fixed" in example.faults else 7
    for shape in ((seq,), (2, seq), (2, 3, seq)):
        assert run(made, inputs(*shape)).shape == (*shape, D_MODEL)
