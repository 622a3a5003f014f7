"""The depth experiment, tiny: what is measured, what is said of it, and the page."""

import csv
import json
import math
from dataclasses import replace

import pytest

from prenorm.lab.depth.experiment import depth_experiment
from prenorm.lab.depth.initialisation import InitialCell
from prenorm.lab.depth.plan import DEFAULT, FULL, QUICK, Scale, best_rate, plan
from prenorm.lab.depth.training_chapters import Trained, _warmup
from prenorm.lab.folder import open_folder
from prenorm.lab.intervals import exponent
from prenorm.lab.model import OURS, XAVIER, Sizes
from prenorm.lab.training import TrainingCell
from prenorm.lab.variants import VARIANTS

from ..measured import browser_says, measured

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch says it of itself, in jvp

SIZES = Sizes(d_model=8, num_heads=2, d_ff=8, batch=2, context=8)
TINY = Scale(
    initial_depths=(2, 4),
    seeds=(0, 1),
    rates=(1e-3, 1e-2),
    sweep_depth=2,
    depths=(1, 2),
    warmup_depths=(2,),
    warmup_rates=(1e-3, 1e-2),
    warmup=2,
    steps=4,
    sizes=SIZES,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("depth")
    (path / "record.json").write_text(json.dumps(measured(depth_experiment(TINY), path / "out")))
    return path


def test_every_claim_has_a_source_a_range_an_interval_and_a_verdict(folder):
    record = json.loads((folder / "record.json").read_text())
    assert record == json.loads((folder / "out" / "depth.json").read_text())
    findings = record["findings"]
    claims = " ".join(one["claim"] + one["source"] for one in findings)
    for part in ("1/sqrt(depth)", "2002.04745", "needs warm-up", "vanish", "grows", "2203.00555", "depth-scaled"):
        assert part in claims
    for one in findings:
        assert one["verdict"] in ("agrees", "disagrees", "cannot tell")
        assert one["source"]
        assert [bound for bound in one["claimed"] if bound is not None]
        assert one["measured"] is None or (one["seeds"] == 2 and len(one["interval"]) == 2)


def test_the_files_have_every_number_and_every_picture(folder):
    out, record = folder / "out", json.loads((folder / "record.json").read_text())
    with (out / "initialisation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(VARIANTS) * 2 * 2 * sum(depth + 1 for depth in TINY.initial_depths)
    first = {"variant": "pre-norm", "start": XAVIER, "depth": "4", "seed": "1", "layer": "4"}
    (row,) = [one for one in rows if first.items() <= one.items()]
    cell = InitialCell(variant="pre-norm", start=XAVIER, depth=4, seed=1, sizes=SIZES).measure()
    assert float(row["last_ffn_gradient_norm"]) == cell["last_ffn_gradient"][-1]
    assert float(row["activation_rms"]) == cell["activation"][-1]
    with (out / "trainings.csv").open() as file:
        trainings = list(csv.DictReader(file))
    cells = {line.count('"kind": "TrainingCell"') and line for line in (out / "cells.jsonl").read_text().splitlines()}
    assert len(trainings) == len(cells - {0})
    for chapter in record["chapters"]:
        assert (out / chapter["picture"]).read_bytes().startswith(b"\x89PNG")
        assert all(len(row) == len(chapter["columns"]) for row in chapter["rows"])


def test_the_page_shows_all_of_it_in_a_browser_on_a_narrow_screen_without_network(folder):
    page = folder / "out" / "depth.html"
    text = page.read_text()
    for part in ("warm-up", "cannot tell", "https://arxiv.org/abs/2002.04745", "prefers-color-scheme: dark"):
        assert part in text
    facts = browser_says(page, folder)
    if facts is None:
        pytest.skip("Chromium is not installed")
    assert facts["errors"] == []
    assert len(facts["images"]) == 8
    assert all(facts["images"])
    assert facts["scroll"] <= facts["width"]


def test_the_same_cell_gives_the_same_numbers_and_another_seed_others():
    options = {"variant": "sandwich", "start": OURS, "depth": 2, "sizes": SIZES}
    one, same, other = (InitialCell(seed=seed, **options).measure() for seed in (3, 3, 4))
    assert one == same
    assert one != other
    options |= {"rate": 1e-2, "warmup": 2, "steps": 3}
    one, same, other = (TrainingCell(seed=seed, **options).measure() for seed in (3, 3, 4))
    assert one == same
    assert one["curve"] != other["curve"]
    assert len(one["curve"]) == 3


def test_gradients_and_the_first_step_are_those_of_small_differences():
    import torch

    from prenorm.lab.depth import initialisation
    from prenorm.lab.model import VariantLM
    from prenorm.lab.text import draw_rows, python_text
    from prenorm.ops.cross_entropy import cross_entropy

    found = InitialCell(variant="DeepNorm", start=XAVIER, depth=3, seed=1, sizes=SIZES).measure()
    model = VariantLM("DeepNorm", 3, XAVIER, sizes=SIZES, seed=1, dtype=torch.float64)
    rows = draw_rows(python_text().training, 2, 8, torch.Generator().manual_seed(1))
    loss = cross_entropy(model(rows[:, :-1]), rows[:, 1:])
    assert found["loss"] == pytest.approx(loss.item())
    streams = model.streams(rows[:, :-1])
    again = cross_entropy(model.lm_head(model.final_norm(streams[-1])), rows[:, 1:])
    of_streams = torch.autograd.grad(again, streams, retain_graph=True)
    assert found["activation"] == pytest.approx([one.pow(2).mean().item() ** 0.5 for one in streams])
    assert found["activation_gradient"] == pytest.approx([one.norm().item() for one in of_streams])
    for block, norm, last in zip(model.layers, found["weight_gradient"], found["last_ffn_gradient"], strict=True):
        of_block = torch.autograd.grad(again, [*block.parameters()], retain_graph=True)
        assert norm == pytest.approx(sum(one.pow(2).sum().item() for one in of_block) ** 0.5)
        (of_last,) = torch.autograd.grad(again, [block.ffn.down_proj.weight], retain_graph=True)
        assert last == pytest.approx(of_last.norm().item())
    matrices = [one for name, one in model.layers.named_parameters() if one.ndim == 2]
    gradients = torch.autograd.grad(loss, matrices)
    before, step = model(rows[:, :-1], hidden=True), 1e-6
    with torch.no_grad():
        for one, gradient in zip(matrices, gradients, strict=True):
            one.sub_(step * gradient)
        moved = (model(rows[:, :-1], hidden=True) - before).norm() / step
    assert found["update"] == pytest.approx(moved.item(), rel=1e-4)
    assert initialisation._finite(torch.tensor(math.inf)) is None


def test_a_training_whose_loss_is_not_finite_ends_there_and_says_so():
    found = TrainingCell(
        variant="no norm", start=XAVIER, depth=40, rate=1e-2, warmup=0, steps=5, seed=0, sizes=Sizes()
    ).measure()
    assert found["loss"] is None
    assert len(found["curve"]) < 5
    json.dumps(found, allow_nan=False)


def test_with_warmup_the_rate_rises_in_a_straight_line(monkeypatch):
    import torch

    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    cell = {"variant": "pre-norm", "start": XAVIER, "depth": 1, "rate": 0.1, "steps": 4, "seed": 0, "sizes": SIZES}
    TrainingCell(warmup=2, **cell).measure()
    TrainingCell(warmup=0, **cell).measure()
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1] + [0.1] * 4)


def test_the_plan_is_that_of_the_experiment(tmp_path):
    with open_folder(tmp_path, "depth") as cells:
        known, later = plan(DEFAULT, cells)
        assert len({one for one in known if isinstance(one, InitialCell)}) == 8 * 2 * 7 * 3
        trainings = {one for one in known if isinstance(one, TrainingCell)}
        assert {one.depth for one in trainings} == {4, 16}
        assert later > 0
        swept = [one for one in trainings if one.variant == "sandwich"]
        assert sorted(one.rate for one in swept) == [1e-3, 3e-3, 1e-2, 3e-2]
        for one in swept:
            cells.add(one, {"loss": None if one.rate > 0.02 else abs(one.rate - 3e-3)})
        assert best_rate(DEFAULT, cells, "sandwich", XAVIER, 64) == 3e-3
        deep = {one for one in plan(DEFAULT, cells).cells if isinstance(one, TrainingCell)} - trainings
        assert {(one.variant, one.rate) for one in deep} == {("sandwich", 3e-3)}
        assert {(one.depth, one.seed) for one in deep} >= {(depth, seed) for depth in (4, 64) for seed in (0, 1, 2)}
        full = set(plan(FULL, cells).cells)
        assert full >= trainings | deep
        assert len(full) > 2000
        assert sum(one.cost for one in plan(QUICK, cells).cells) < 0.2 * sum(one.cost for one in [*known, *deep])


@pytest.mark.long
def test_the_whole_grid_has_a_report_too_with_both_starts(tmp_path):
    scale = replace(TINY, whole_grid=True, seeds=(0,))
    record = measured(depth_experiment(scale), tmp_path)
    titles = [one["title"] for one in record["chapters"]]
    assert sum(title.startswith("Which variants train when they are deep?") for title in titles) == 2
    assert {one["verdict"] for one in record["findings"]} == {"cannot tell"}  # of one seed


def test_warmup_is_needed_where_none_of_it_diverges_and_nothing_is_said_of_models_that_learned_nothing(tmp_path):
    with open_folder(tmp_path, "depth") as cells:
        for cell in plan(TINY, cells).cells:
            if isinstance(cell, TrainingCell):
                loss = None if not cell.warmup else 2.0 if cell.variant == "post-norm" else 3.3
                cells.add(cell, {"loss": loss if cell.variant != "pre-norm" else 3.3, "parameters": 1})
        trained = Trained(TINY, cells)
        assert trained.cost_of_none(trained.losses("post-norm", 2, 1e-3), [math.nan] * 2).mean == math.log(256) - 2.0
        chapter = _warmup(trained, 2)
    verdicts = [(one.claim.text.split()[0], one.verdict) for one in chapter.findings]
    assert verdicts == [("post-norm", "agrees")] * 2 + [("pre-norm", "cannot tell")] * 2


def test_seeds_follow_the_first_one():
    assert DEFAULT.from_seed(7).seeds == (7, 8, 9)


@pytest.mark.long
@pytest.mark.usefixtures("shapes_unchecked")
def test_the_last_gradient_falls_like_the_root_of_depth_from_xaviers_start_and_not_from_ours():
    depths = (4, 16, 64)
    exponents = {}
    for variant, start in (("pre-norm", XAVIER), ("pre-norm", OURS), ("post-norm", XAVIER)):
        cells = [InitialCell(variant=variant, start=start, depth=depth, seed=0) for depth in depths]
        exponents[variant, start] = exponent(depths, [one.measure()["last_ffn_gradient"][-1] for one in cells])
    assert exponents["pre-norm", XAVIER] == pytest.approx(-0.5, abs=0.15)
    assert exponents["pre-norm", OURS] == pytest.approx(0.0, abs=0.1)
    assert exponents["post-norm", XAVIER] == pytest.approx(0.0, abs=0.15)
