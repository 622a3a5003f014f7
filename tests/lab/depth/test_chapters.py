"""What the depth report says of numbers that are made up: each sentence, row and line of the right models."""

import csv
import math
import statistics
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch

from prenorm.lab.depth.experiment import depth_report
from prenorm.lab.depth.initialisation import InitialCell
from prenorm.lab.depth.plan import Scale, plan
from prenorm.lab.folder import open_folder
from prenorm.lab.intervals import exponent
from prenorm.lab.model import OURS, STARTS, XAVIER, Sizes, VariantLM
from prenorm.lab.report import as_csv
from prenorm.lab.text import draw_rows, python_text
from prenorm.lab.training import TrainingCell
from prenorm.lab.variants import VARIANTS

SCALE = Scale(
    initial_depths=(2, 4, 8),
    seeds=(0, 1),
    rates=(1e-3, 1e-2, 1e-1),
    sweep_depth=3,
    depths=(1, 3, 5),
    warmup_depths=(5,),
    warmup_rates=(1e-3, 1e-2),
    warmup=2,
    steps=4,
)
NAMES = list(VARIANTS)
KEYS = [(variant, start) for variant in VARIANTS for start in STARTS]
# A world in which every variant and start has laws of its own: by what numbers grow with depth, or from block to block.
LAST = {key: -0.1 * place for place, key in enumerate(KEYS)}
RATE = {key: 0.5 + 0.05 * place for place, key in enumerate(KEYS)}
GROWTH = {key: 0.3 + 0.1 * place for place, key in enumerate(KEYS)}
UPDATE = {key: 0.2 * place - 1 for place, key in enumerate(KEYS)}
RATIO = {key: 2.0 + place for place, key in enumerate(KEYS)}


def initial(cell: InitialCell, world):
    """The record of an untrained model. Seeds differ by a factor whose geometric mean is 2."""
    key, depth, factor = (cell.variant, cell.start), cell.depth, 4.0**cell.seed
    layers = range(1, depth + 1)
    return {
        "loss": 5.0,
        "activation": [1.0, *(math.sqrt(1 + factor * layer ** world["growth"][key]) for layer in layers)],
        "activation_gradient": [factor * world["rate"][key] ** (depth - layer) for layer in (0, *layers)],
        "weight_gradient": [factor * RATIO[key], *[77.0] * (depth - 2), 3.0],
        "last_ffn_gradient": [*[55.0] * (depth - 1), factor * depth ** world["last"][key]],
        "update": factor * depth ** world["update"][key],
    }


def loss(variant, depth, rate, seed, warmup=2):
    """A held-out loss. Pre-norm's best rate is the middle one, post-norm's the first; the last two learn nothing.

    The sandwich learns nothing where it is deep.
    """
    place = NAMES.index(variant)
    if variant == "no norm" and rate == 1e-1:
        return None  # diverged
    best = 1e-2 if variant == "pre-norm" else 1e-3
    cold = 0.0 if warmup else 0.1 * (place + 1) * (2 if rate > 5e-3 else 1)
    worse = 0.3 * abs(math.log10(rate / best)) + cold
    learns = place <= 5 and not (variant == "sandwich" and depth > 3)
    return (2.0 + 0.1 * place if learns else 4.5) + 0.01 * depth + worse + 0.0002 * seed * (place + depth)


def reported(folder, world, scale=SCALE):
    with open_folder(folder, "depth") as cells:
        while missing := [cell for cell in plan(scale, cells).cells if cells.get(cell) is None]:
            for cell in missing:
                if isinstance(cell, InitialCell):
                    cells.add(cell, initial(cell, world))
                elif isinstance(cell, TrainingCell):
                    found = loss(cell.variant, cell.depth, cell.rate, cell.seed, cell.warmup)
                    cells.add(cell, {"loss": found, "parameters": 1000 + cell.depth})
        return depth_report(scale, cells)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    world = {"last": LAST, "rate": RATE, "growth": GROWTH, "update": UPDATE}
    return reported(tmp_path_factory.mktemp("report"), world)


def chapter(report, words):
    (found,) = [one for one in report.chapters if words in one.title]
    return found


def measured(found):
    return [None if one.measured is None else one.measured.mean for one in found.findings]


def lines(drawing, panels=2):
    """What a picture draws in each panel: y by the line's name."""
    axes = [MagicMock() for _ in range(panels)]
    for one in axes:
        one.get_ylim.return_value = (0.1, 10.0)
    drawing.draw(axes if panels > 1 else axes[0])
    return [
        {
            call.kwargs["label"]: (list(call.args[0]), list(call.args[1]))
            for call in (*calls.plot.mock_calls, *calls.errorbar.mock_calls)
        }
        for calls in axes
    ]


def test_the_last_gradient_is_that_of_the_last_block(report):
    found = chapter(report, "last layer's gradient")
    wanted = [LAST["pre-norm", XAVIER], LAST["post-norm", XAVIER], LAST["pre-norm", OURS]]
    assert measured(found) == pytest.approx(wanted)
    rows = {row[:2]: row[2:] for row in found.table.rows}
    assert set(rows) == set(KEYS)
    for key in KEYS:
        assert rows[key][:3] == pytest.approx([2.0 * depth ** LAST[key] for depth in SCALE.initial_depths])
        assert float(rows[key][3].split()[0]) == pytest.approx(LAST[key], abs=5e-3)
    for start, drawn in zip(STARTS, lines(found.drawing), strict=True):
        for variant, (x, y) in drawn.items():
            assert x == [2, 4, 8]
            assert y == pytest.approx([2.0 * depth ** LAST[variant, start] for depth in x])


def test_gradients_are_followed_from_the_last_block_to_the_first(report):
    found = chapter(report, "reach the first layer")
    order = [(variant, start) for variant in ("pre-norm", "post-norm", "no residual") for start in STARTS]
    assert measured(found) == pytest.approx([RATE[key] for key in order])
    for (variant, start), finding in zip(order, found.findings, strict=True):
        assert finding.claim.text.endswith(f"({variant}, {start} start)")
    for variant, *cells in found.table.rows:
        assert [float(cell.split()[0]) for cell in cells] == pytest.approx([RATE[variant, s] for s in STARTS], abs=5e-3)
    for start, drawn in zip(STARTS, lines(found.drawing), strict=True):
        assert drawn["sandwich"][1] == pytest.approx([RATE["sandwich", start] ** (8 - layer) for layer in range(9)])


def test_the_first_blocks_gradient_is_divided_by_the_last_ones(report):
    found = chapter(report, "Which layers get the gradient")
    assert found.table.columns[1:] == tuple(f"{start}, {depth}" for start in STARTS for depth in (2, 4, 8))
    for variant, *cells in found.table.rows:
        assert cells == pytest.approx([2.0 * RATIO[variant, start] / 3 for start in STARTS for _ in range(3)])
    for start, drawn in zip(STARTS, lines(found.drawing), strict=True):
        assert drawn["no norm"][1] == pytest.approx([RATIO["no norm", start], *[77.0] * 6, 3.0])


def test_the_stream_grows_by_what_was_added_to_it(report):
    found = chapter(report, "residual stream")
    ends = [
        [math.sqrt(1 + factor * depth ** GROWTH["pre-norm", OURS]) for depth in SCALE.initial_depths]
        for factor in (1.0, 4.0)
    ]
    end = statistics.fmean(exponent(SCALE.initial_depths, one) for one in ends)
    assert measured(found) == pytest.approx([GROWTH["pre-norm", XAVIER], end])
    row = {row[:2]: row[2:] for row in found.table.rows}["pre-norm", OURS]
    assert row[:3] == pytest.approx([statistics.geometric_mean(pair) for pair in zip(*ends, strict=True)])
    drawn = lines(found.drawing)[1]["pre-norm"]
    assert drawn[1] == pytest.approx(
        [1.0, *(math.sqrt(1 + layer ** GROWTH["pre-norm", OURS]) for layer in range(1, 9))]
    )


def test_the_first_step_is_that_of_deepnorm_and_of_post_norm(report):
    found = chapter(report, "first step")
    assert measured(found) == pytest.approx([UPDATE["DeepNorm", XAVIER], UPDATE["post-norm", XAVIER]])
    rows = {row[:2]: row[2:] for row in found.table.rows}
    for key in KEYS:
        assert rows[key][:3] == pytest.approx([2.0 * depth ** UPDATE[key] for depth in SCALE.initial_depths])


def test_a_stream_that_does_not_grow_has_no_number_and_the_rest_of_the_report_stands(tmp_path):
    world = {"last": LAST, "rate": RATE, "growth": dict.fromkeys(KEYS, -math.inf), "update": UPDATE}
    found = chapter(reported(tmp_path, world), "residual stream")
    assert measured(found) == [None, pytest.approx(0.0)]
    assert [one.verdict for one in found.findings] == ["cannot tell", "agrees"]
    assert "b = no number" in found.text[0]


def everywhere(of):
    return {key: of(*key) for key in KEYS}


def test_claims_agree_in_a_world_that_is_as_they_say_and_disagree_in_one_that_is_not(tmp_path):
    lore = {
        "last": everywhere(lambda variant, start: -0.5 if variant == "pre-norm" else 0.0),
        "rate": everywhere(lambda variant, start: 0.8 if variant == "no residual" else 1.0),
        "growth": everywhere(lambda variant, start: 1.0 if start == XAVIER else 0.0),
        "update": everywhere(lambda variant, start: 0.5 if variant == "post-norm" else 0.0),
    }
    against = {
        "last": everywhere(lambda variant, start: 0.0 if variant == "pre-norm" else -0.5),
        "rate": everywhere(lambda variant, start: 1.0 if variant == "no residual" else 0.8),
        "growth": everywhere(lambda variant, start: 0.0 if start == XAVIER else 2.0),
        "update": everywhere(lambda variant, start: -0.5),
    }
    for world, verdict in ((lore, "agrees"), (against, "disagrees")):
        chapters = reported(tmp_path / verdict, world).chapters[:5]
        assert {one.verdict for found in chapters for one in found.findings} == {verdict}
        assert ("What that means for the lore" in " ".join(chapters[0].text)) == (verdict == "disagrees")


def test_the_best_rate_is_that_of_the_least_loss_and_what_lies_at_the_edge_is_named(report):
    found = chapter(report, "Which learning rate")
    rows = {row[0]: row[1:] for row in found.table.rows}
    for variant in VARIANTS:
        losses = [loss(variant, 3, rate, 0) for rate in SCALE.rates]
        assert rows[variant][:3] == pytest.approx(losses)
        assert rows[variant][3] == (1e-2 if variant == "pre-norm" else 1e-3)
    edge = ", ".join(variant for variant in VARIANTS if variant != "pre-norm")
    assert f"better: {edge}." in found.text[0]
    drawn = lines(found.drawing, panels=1)[0]
    assert drawn["no norm"] == ([1e-3, 1e-2], pytest.approx([loss("no norm", 3, rate, 0) for rate in (1e-3, 1e-2)]))


def seeds(variant, depth, rate, **other):
    return [loss(variant, depth, rate, seed, **other) for seed in SCALE.seeds]


def test_post_norm_is_compared_with_pre_norm_deep_and_deep_pre_norm_with_shallow(report):
    found = chapter(report, "when they are deep")
    deep, shallow, post = (
        statistics.fmean(seeds(*one)) for one in (("pre-norm", 5, 1e-2), ("pre-norm", 1, 1e-2), ("post-norm", 5, 1e-3))
    )
    assert measured(found) == pytest.approx([post - deep, deep - shallow])
    assert [one.verdict for one in found.findings] == ["agrees", "disagrees"]
    assert f"diverged: {', '.join(['sandwich', *NAMES[6:]])}." in found.text[0]
    for variant, rate, *cells in found.table.rows:
        means = [statistics.fmean(seeds(variant, depth, rate)) for depth in SCALE.depths]
        assert [float(cell.split()[0]) for cell in cells] == pytest.approx(means, rel=5e-3)
        assert lines(found.drawing, panels=1)[0][variant] == ([1, 3, 5], pytest.approx(means))


def test_warmup_costs_what_is_lost_without_it_at_the_best_rate_and_at_the_highest(report):
    found = chapter(report, "need warm-up")
    assert measured(found) == pytest.approx([0.2, 0.4, 0.2, 0.2])
    assert ["post-norm" in one.claim.text for one in found.findings] == [True, True, False, False]
    assert [one.verdict for one in found.findings] == ["agrees", "agrees", "disagrees", "disagrees"]
    for variant, warmup, *cells in found.table.rows:
        means = [statistics.fmean(seeds(variant, 5, rate, warmup=warmup)) for rate in SCALE.warmup_rates]
        assert [float(cell.split()[0]) for cell in cells] == pytest.approx(means, rel=5e-3)
    for variant, drawn in zip(("pre-norm", "post-norm"), lines(found.drawing), strict=True):
        for warmup in (2, 0):
            means = [statistics.fmean(seeds(variant, 5, rate, warmup=warmup)) for rate in SCALE.warmup_rates]
            assert drawn[f"{warmup} steps of warm-up"][1] == pytest.approx(means)


def test_the_files_have_each_number_in_its_column(report):
    rows = list(csv.DictReader(as_csv(report.data["initialisation"]).decode().splitlines()))
    world = {"last": LAST, "rate": RATE, "growth": GROWTH, "update": UPDATE}
    for row in rows:
        cell = InitialCell(variant=row["variant"], start=row["start"], depth=int(row["depth"]), seed=int(row["seed"]))
        record, layer = initial(cell, world), int(row["layer"])
        assert float(row["activation_rms"]) == record["activation"][layer]
        assert float(row["activation_gradient_norm"]) == record["activation_gradient"][layer]
        assert float(row["update_per_rate"]) == record["update"]
        if layer:
            assert float(row["weight_gradient_norm"]) == record["weight_gradient"][layer - 1]
            assert float(row["last_ffn_gradient_norm"]) == record["last_ffn_gradient"][layer - 1]
    for row in csv.DictReader(as_csv(report.data["trainings"]).decode().splitlines()):
        depth, rate, seed, warmup = (
            of(row[name])
            for of, name in ((int, "depth"), (float, "learning_rate"), (int, "seed"), (int, "warmup_steps"))
        )
        found = loss(row["variant"], depth, rate, seed, warmup)
        assert row["heldout_loss"] == ("" if found is None else str(found))
        assert (row["parameters"], row["steps"], row["start"]) == (str(1000 + depth), "4", XAVIER)


def test_a_training_starts_from_the_model_and_is_scored_on_the_next_bytes_of_held_out_text():
    sizes = Sizes(d_model=8, num_heads=2, d_ff=8, batch=2, context=8)
    cell = TrainingCell(variant="pre-norm", start=XAVIER, depth=1, rate=1e-3, warmup=1, steps=1, seed=3, sizes=sizes)
    model = VariantLM("pre-norm", 1, XAVIER, sizes=sizes, seed=3)

    def nats(rows):
        scores = model(rows[:, :-1]).double().log_softmax(-1)
        return -scores.gather(-1, rows[:, 1:, None]).mean().item()

    assert cell.measure()["curve"] == [
        pytest.approx(nats(draw_rows(python_text().training, 2, 8, seeded(3))), rel=1e-5)
    ]
    untrained = replace(cell, steps=0).measure()
    assert untrained["loss"] == pytest.approx(nats(draw_rows(python_text().heldout, 256, 8, seeded(12345))), rel=1e-5)
    assert untrained["parameters"] == sum(one.numel() for one in model.parameters())
    assert not torch.equal(python_text().heldout[:1000], python_text().training[:1000])


def seeded(seed):
    return torch.Generator().manual_seed(seed)
