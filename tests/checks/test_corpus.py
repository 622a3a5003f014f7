"""The corpus is what it says it is: right blocks are right, and faulty ones have their fault.

One in so many is looked at; PRENORM_ALL_CHECKS=1 looks at every one.
"""

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from prenorm.checks.faults import CONVENTIONS, FAULTS
from prenorm.checks.subject.learner import TABLES
from prenorm.checks.subject.recipe import names_in

from .corpus import Example, faulty, original, right, without
from .corpus.editing import ASKED_BY_TARGET
from .corpus.strangers import blocks as strangers
from .corpus.strangers.faults import FAULTS as FAULTS_OF_STRANGERS
from .corpus.strangers.interfaces import INTERFACES
from .layouts import Conventions, block, conventions, weights
from .probing import (
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
BY_TARGET = CONVENTIONS | {"rope_wrong_direction"}
TARGETS = {
    "paper": Conventions(interleaved=True, causal=False),
    "llama": Conventions(interleaved=False, causal=True),
}
CHANGED: dict[str, Any] = {
    "causal_mask": {"causal": True},
    "rope_half_split": {"interleaved": False},
    "rope_interleaved": {"interleaved": True},
    "rope_wrong_direction": {"sign": -1},
    "gqa_tiled_instead_of_repeated": {"tiled": True},
    "unexpected_bias": {},
}


# Packages that take seconds to import are looked at where everything is.
RIGHT = [one for one in right() if EVERYTHING or one.style not in {"transformers", "x_transformers", "litgpt"}]


def some(examples: list[Example], every: int) -> list:
    """All of them where asked for, else one in so many."""
    chosen = examples if EVERYTHING else examples[::every]
    return [pytest.param(example, id=example.name) for example in chosen]


def by_convention(example: Example) -> bool:
    """Whether its target alone makes it a faulty one."""
    return example.target is not None and example.faults <= CHANGED.keys()


def parameters(made: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(made.named_parameters())


# What no block of this half has: targets with biases and qk-norm are tried with our own block in test_check.py, and
# what the constructor builds and training does with the blocks of strangers.
WITHOUT_EXAMPLES = {"missing_bias", "missing_qk_norm", "unexpected_qk_norm"} | {
    "arguments_unknown",
    "unreadable",
    "unexplained",
    "internal_error",
}
STRANGERS = {fault for example in strangers.faulty() for fault in example.faults}


def test_the_corpus_is_large_and_covers_every_fault():
    counts = Counter(fault for example in faulty() for fault in example.faults)
    assert len(faulty()) >= 320
    assert sum(len(example.faults) == 2 for example in faulty()) >= 60
    assert len(right()) >= 60
    assert {fault for fault in FAULTS if counts[fault] < 3} - STRANGERS == WITHOUT_EXAMPLES
    assert len({example.style for example in faulty()}) >= 12


def test_strangers_meet_every_fault_in_every_interface():
    pairs = {(example.style, name) for example in strangers.faulty() for name in example.faults}
    lacking = {
        (interface.name, fault.fault)
        for interface in INTERFACES
        for fault in FAULTS_OF_STRANGERS
        if (interface.name, fault.fault) not in pairs
    }
    # A fault of the causal mask has its place where the block makes the mask, mask_ignored where it is handed in.
    assert {fault for _, fault in lacking} <= {
        *("causal_off_by_one", "mask_inverted", "mask_value_too_small", "wrong_device_buffer", "mask_ignored"),
        *("rope_not_a_rotation", "d_ff_ignored"),
    }
    assert len(strangers.faulty()) >= 600
    assert len(strangers.right()) >= 80


def test_a_line_that_calls_a_strangers_block_uses_the_tables_of_its_file():
    lines = [one.line_of_call or one.line_of_build or "" for one in INTERFACES]
    assert [line for line in lines if names_in(line) & {*TABLES}] == []


def test_names_are_unique_and_labels_are_ids():
    examples = [*faulty(), *right(), *strangers.faulty(), *strangers.right()]
    assert [name for name, count in Counter(example.name for example in examples).items() if count > 1] == []
    for example in examples:
        assert example.faults | example.also_named <= FAULTS.keys()
        assert not example.faults & example.also_named
        assert example.target in {None, *TARGETS}
        assert (example.target is not None) == bool(example.faults & BY_TARGET) or example.faults & ASKED_BY_TARGET
    assert all(example.faults for example in [*faulty(), *strangers.faulty()])
    assert not any(example.faults for example in right())


def test_no_two_faulty_blocks_are_the_same_and_none_is_a_right_one():
    sources = Counter((example.source, example.target) for example in faulty())
    assert sources.most_common(1)[0][1] == 1
    rights = {example.source for example in right()}
    assert [example.name for example in faulty() if example.source in rights and example.target is None] == []


def test_every_source_compiles():
    for example in (faulty() + right())[:: 1 if EVERYTHING else 9]:
        compile(example.source, example.name, "exec")


@pytest.mark.parametrize("example", some(RIGHT, 5))
def test_a_right_block_is_the_papers(example):
    made = build(example)
    free, its = conventions(example.name), weights(example.name, parameters(made))
    with torch.no_grad():
        for shape in ((7,), (2, 7), (2, 3, 7), (2, 1), (1, MAX_SEQ_LEN)):
            assert far(run(made, inputs(*shape)), block(inputs(*shape), its, free)) < 1e-6
        x = inputs(2, 7)
        for positions in (torch.tensor([3, 1, 0, 9, 15, 4, 4]), torch.arange(14).view(2, 7)):
            y = run(made, x, **{positions_keyword(example): positions})
            assert far(y, block(x, its, free, positions)) < 1e-6
        if takes(example, "mask"):
            mask = random_mask(7)
            assert far(run(made, x, mask=mask), block(x, its, free, mask=mask)) < 1e-6


@pytest.mark.parametrize("example", some(RIGHT, 5))
def test_a_right_block_has_the_papers_gradients(example):
    made = build(example)
    x = inputs(2, 7).requires_grad_()
    y = block(x, weights(example.name, parameters(made)), conventions(example.name))
    (y * inputs(2, 7, seed=9)).sum().backward()
    exact = {name: parameter.grad for name, parameter in made.named_parameters()} | {"x": x.grad}
    found = gradients(build(example), inputs(2, 7))
    assert found.keys() == exact.keys()
    assert max(far(found[name], exact[name]) for name in exact) < 1e-5


@pytest.mark.parametrize("example", some(RIGHT, 5))
def test_a_right_block_behaves(example):
    for fault in ("modifies_input", "retains_state", "sequence_length_fixed", "batch_coupled", "not_deterministic"):
        assert shows(fault, example, example) is not None
    if example.style != "x_transformers":  # it asks for autocast, which the meta device does not have
        assert runs_on_meta(example)


@pytest.mark.parametrize("example", some(RIGHT, 5))
def test_a_right_block_is_precise_in_bfloat16(example):
    made = build(example, double=False, dtype=torch.bfloat16)
    if {parameter.dtype for parameter in made.parameters()} != {torch.bfloat16}:
        return  # its constructor does not take a dtype
    x = inputs(2, 7).bfloat16()
    y = run(made, x)
    assert y.dtype == torch.bfloat16
    its = weights(example.name, {name: parameter.double() for name, parameter in made.named_parameters()})
    # Some ten operations in a row, each of which rounds by up to 2^-8, with signs at random.
    assert far(y, block(x.double(), its, conventions(example.name))) < 10**0.5 * 2**-7


@pytest.mark.parametrize("example", some([one for one in faulty() if not by_convention(one)], 9))
def test_a_faulty_block_differs_in_what_its_faults_are_about(example):
    for fault in example.faults:
        assert shows(fault, example, without(example, fault)) is None


@pytest.mark.parametrize("example", some([one for one in faulty() if by_convention(one)], 4))
def test_a_block_with_other_conventions_is_right_but_for_the_target(example):
    made = build(example)
    faults = example.faults | example.also_named
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias") or name == "Bgate":
                parameter.zero_()
    named = original(example).name
    given = conventions(named)
    asked = replace(TARGETS[example.target], eps=given.eps, kv_heads=given.kv_heads)
    its, x = weights(named, parameters(made)), inputs(2, 7)
    with torch.no_grad():
        for fault in faults:
            least = replace(asked, **{key: value for one in faults - {fault} for key, value in CHANGED[one].items()})
            if fault == "unexpected_bias":
                assert far(run(build(example), x), run(made, x)) > 1e-3
            else:
                assert far(run(made, x), block(x, its, least)) > 1e-3
        own = replace(asked, **{key: value for one in faults for key, value in CHANGED[one].items()})
        assert far(run(made, x), block(x, its, own)) < 1e-6


@pytest.mark.parametrize("example", some([e for e in faulty() if not e.faults & (FATAL | {"leading_dims"})], 9))
def test_every_other_faulty_block_takes_any_leading_dims(example):
    made = build(example)
    seq = MAX_SEQ_LEN if "sequence_length_fixed" in example.faults else 7
    for shape in ((seq,), (2, seq), (2, 3, seq)):
        assert run(made, inputs(*shape)).shape == (*shape, D_MODEL)
