"""A part of the grid, and the grid itself: that it is as large and as even as it says, and that its judge sees.

All of it: make test-grid.
"""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from .cells import FACTORS, GRAPHS, HONOURS, SUBJECTS, draw, possible
from .judge import judge
from .paths import NOT_YET, PATHS, named

ROOT = Path(__file__).parents[2]
PAGES = ("docs/what-is-guaranteed-to-be-equal.md", "docs/what-is-checked-and-against-what.md")

GRID = draw(tuple(PATHS))
COLUMNS = [(path, subject) for path in PATHS for subject in SUBJECTS if possible(path, subject)]
# The core, which `make test` runs: every so many-th cell of a path and subject; of graphs, which cost seconds each, all
# cells of one model, where they are quick.
SPREAD = 11
IN_FULL = [("rows out of step in a cache", "block")]  # cheap, and the most ways to go wrong
QUICK = [(path, of) for path in ("compiled (aot_eager)", "exported") for of in ("block", "lm")]
QUICK += [("exported", "encoder-decoder")]
CORE = [column for column in COLUMNS if column[0] not in GRAPHS or column in QUICK]

# What torch, its compiler and its exporters say of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* was saved as model_type 'prenorm'"),  # few of the grid's are a known family
]


def core(path, subject):
    """The numbers of the cells that `make test` runs."""
    cells = [number for number, cell in enumerate(GRID) if (cell.path, cell.subject) == (path, subject)]
    if path in GRAPHS:
        return [number for number in cells if GRID[number].weights == 0]
    if (path, subject) in IN_FULL:
        return cells
    spread = 3 * SPREAD if subject == "family" else SPREAD
    return cells[COLUMNS.index((path, subject)) % spread :: spread]  # not always the first, with its values


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("path", "subject"), CORE)
def test_every_way_of_running_gives_the_same_numbers(path, subject):
    verdicts = {number: judge(GRID[number]) for number in core(path, subject)}
    over = {number: verdict.figures for number, verdict in verdicts.items() if not verdict.figure <= 1}
    assert verdicts
    assert not over, f"over the limit; python -m tests.equality --cell {next(iter(over))} runs one alone"


def test_the_grid_has_5000_cells_of_which_no_two_are_the_same():
    assert len({replace(cell, weights=0, inputs=0) for cell in GRID}) >= 5000
    assert len(set(GRID)) == len(GRID)


def test_the_docs_and_make_help_say_how_many_cells_there_are():
    families = sum(cell.subject == "family" for cell in GRID)
    pages = {path: " ".join((ROOT / path).read_text().split()) for path in ("Makefile", *PAGES)}
    assert all(f" {len(GRID):,} " in page for page in pages.values())
    assert f"{len(GRID):,} combinations" in pages[PAGES[0]]
    assert f"{families:,} of them are of models with a family's record" in pages[PAGES[0]]
    assert all(f"{len(GRID) - families:,}" in pages[page] for page in PAGES)


def test_every_value_occurs_in_every_path_that_can_honour_it_and_about_as_often_as_the_others():
    cells = defaultdict(list)
    for cell in GRID:
        cells[cell.path, cell.subject].append(cell)
    assert list(cells) == COLUMNS
    for (path, subject), drawn in cells.items():
        for name, values in possible(path, subject).items():
            counts = Counter(getattr(cell, name) for cell in drawn)
            assert set(counts) == set(values), f"{name} in {path}, {subject}"
            models = len({cell.weights for cell in drawn})
            of_models = len(drawn) // models  # cells that share a model share what the model is
            assert max(counts.values()) - min(counts.values()) <= of_models, f"{name} in {path}, {subject}"


def test_every_value_of_every_factor_is_honoured_by_some_path():
    for subject in SUBJECTS:
        for name, values in FACTORS[subject].items():
            met = {value for path in PATHS for value in possible(path, subject).get(name, ())}
            assert met >= set(values), f"{name} of {subject}"


def test_every_path_is_known_by_what_it_can_honour():
    assert set(PATHS) | set(NOT_YET) == set(HONOURS)
    assert not set(PATHS) & set(NOT_YET)


# The judge


def cell_of(path, subject="block", **fields):
    """A cell of the grid with some fields changed."""
    cell = next(cell for cell in GRID if (cell.path, cell.subject, cell.leading) == (path, subject, (3,)))
    return replace(cell, seq=40, **fields)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_judge_sees_an_output_that_is_a_few_roundings_off(dtype):
    cell = cell_of("plain", dtype=dtype, sees="past")
    run, eps = PATHS["plain"].run, torch.finfo(getattr(torch, dtype)).eps
    assert judge(cell).figure <= 1

    def off(case):
        y, parameters = run(case)
        return y * (1 + 32 * eps), parameters

    assert judge(cell, off).figures["output"] > 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("what", ["the input", "the parameters"])
def test_the_judge_sees_a_gradient_that_is_off(dtype, what):
    cell = cell_of("plain", dtype=dtype, sees="past")
    run = PATHS["plain"].run

    def off(case):
        y, parameters = run(case)
        tensor = case.leaves[0] if what == "the input" else case.module.get_parameter("attn.q_proj.weight")
        return y + 0.1 * (tensor.sum() - tensor.detach().sum()), parameters

    figures = judge(cell, off).figures
    assert figures["output"] <= 1
    assert figures[f"gradient of {what}"] > 1


def test_the_judge_sees_a_later_token_leak_into_an_earlier_output():
    cell = cell_of("plain", dtype="float32", sees="past", mask="none")

    def leaking(case):
        (x,) = case.inputs
        y, parameters = PATHS["plain"].run(case)
        return torch.cat((y[..., :1, :] + 1e-4 * x[..., -1:, :], y[..., 1:, :]), dim=-2), parameters

    assert judge(cell, leaking).figures["output"] > 1


def test_the_judge_sees_a_document_that_sees_another():
    cell = replace(cell_of("plain", dtype="bfloat16", sees="past"), mask="documents")

    def unseparated(case):
        options = {name: value for name, value in case.options.items() if name != "segment_ids"}
        return case.module(*case.inputs, **options), named(case.module)

    assert judge(cell, unseparated).figures["output"] > 1


def test_the_judge_sees_plain_formulas_that_are_wrong_themselves(monkeypatch):
    cell = cell_of("the reference formulas", dtype="float32", sees="past")
    from prenorm.ops.rope_frequencies import rope_frequencies as frequencies

    monkeypatch.setattr("prenorm.layers.rope.rope_frequencies", lambda *given: frequencies(*given) * (1 + 1e-4))
    figures = judge(cell).figures
    assert figures["output"] <= 1  # path and plain formulas are wrong in the same way
    assert figures["output by the plain formulas"] > 1


def test_the_judge_sees_what_is_not_a_number_and_another_shape_or_dtype():
    cell = cell_of("under no_grad", dtype="float32")
    run = PATHS["under no_grad"].run

    def changed_by(change: Any) -> Any:
        return lambda case: (change(run(case)[0]), {})

    for change in (lambda y: y * torch.nan, lambda y: y[..., :-1], lambda y: y.double()):
        assert judge(cell, changed_by(change)).figure == float("inf")


def test_the_judge_sees_one_bit_where_bits_must_be_the_same():
    cell = cell_of("checkpointed, dropout on", dtype="float32", sees="past")

    def off(case):
        y, parameters = PATHS["checkpointed, dropout on"].run(case)
        with torch.no_grad():
            y.view(-1)[0] = y.view(-1)[0].nextafter(torch.tensor(1e9))
        return y, parameters

    assert judge(cell).figure == 0
    assert judge(cell, off).figure == float("inf")
