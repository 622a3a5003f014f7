import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prenorm import TransformerLM, use_backend
from prenorm.errors import PrenormError
from prenorm.training import passes
from prenorm.training.device import choose_device
from prenorm.training.display import Display
from prenorm.training.tokenizer import end_of_text, vocabulary_size
from prenorm.training.tokens import prepare_text
from prenorm.training.trainer import Trainer


@pytest.fixture
def trainer_of(tmp_path):
    """The trainer of a run with these settings."""

    def trainer(config):
        data = prepare_text(config, tmp_path / "text", lambda _: None)
        return Trainer(config, data, choose_device(config), Display(quiet=True))

    return trainer


def losses_of(trainer, steps=3):
    return [trainer.step(step)["loss"] for step in range(1, steps + 1)]


def test_a_step_reports_its_loss_and_moves_the_weights(tiny, trainer_of):
    trainer = trainer_of(tiny(dropout=0.0))
    before = trainer.model.embedding.weight.clone()
    batch = trainer.batches.at(1)
    with torch.no_grad():
        expected = trainer.model.loss(**batch._asdict()).item()
    record = trainer.step(1)
    assert record.keys() == {"step", "loss", "lr", "grad_norm", "tokens_per_second", "mfu_causal", "mfu_6n_attention"}
    assert record["loss"] == pytest.approx(expected, rel=1e-6)
    assert record["lr"] == trainer.config.muon_lr / 2  # the first of two steps of warmup
    assert not torch.equal(trainer.model.embedding.weight, before)


def test_the_same_seed_takes_the_same_steps_and_another_seed_others(tiny, trainer_of):
    assert losses_of(trainer_of(tiny())) == losses_of(trainer_of(tiny()))
    assert losses_of(trainer_of(tiny())) != losses_of(trainer_of(tiny(seed=1)))


def test_the_vocabulary_and_the_end_of_text_are_the_tokenizers(tiny, trainer_of):
    trainer = trainer_of(tiny(vocab_size=5000))  # more than this little text can fill
    size = vocabulary_size(trainer.data.tokenizer)
    assert trainer.model.config.vocab_size == size < 5000
    assert trainer.model.eos_token_ids == (end_of_text(trainer.data.tokenizer)[1],)


def test_the_size_of_micro_batches_changes_no_loss(tiny, trainer_of):
    whole, parts = (losses_of(trainer_of(tiny(micro_batch_size=size, dropout=0.3))) for size in (4, 1))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_the_loss_on_conversations_is_the_mean_over_replies_whatever_the_micro_batch(tiny, trainer_of, tmp_path):
    lines: list[Any] = [{"text": "plain " * number} for number in range(1, 9)]
    for number in range(1, 30):
        talk = [{"role": "user", "content": "why " * (number % 9)}, {"role": "assistant", "content": "so " * number}]
        lines.append({"messages": talk})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fields = {"data": [str(tmp_path / "t.jsonl")], "dropout": 0.0}
    whole, parts = (trainer_of(tiny(micro_batch_size=size, **fields)) for size in (4, 1))
    batch = whole.batches.at(1)
    assert 0 < batch.num_targets < batch.targets.numel()
    with torch.no_grad():
        expected = whole.model.loss(**batch._asdict()).item()
    losses = losses_of(whole)
    assert losses[0] == pytest.approx(expected, rel=1e-6)
    assert losses_of(parts) == pytest.approx(losses, rel=1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("every", "runs"), [(1, [2, 2, 2]), (2, [1, 2, 1])])
def test_checkpointing_activations_runs_blocks_twice_and_changes_no_loss_and_no_weight(
    tiny, trainer_of, every, runs, dtype
):
    fields = {"dtype": dtype, "num_layers": 3, "dropout": 0.2}
    plain = trainer_of(tiny(**fields))
    less = trainer_of(tiny(**fields, checkpoint_activations=True, checkpoint_activations_every=every))
    counts = [0, 0, 0]
    for number, block in enumerate(less.model.layers):

        def count(*_, number=number):
            counts[number] += 1

        block.register_forward_pre_hook(count)
    assert losses_of(less) == losses_of(plain)
    assert counts == [3 * each for each in runs]
    weights = plain.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in less.model.state_dict().items())


def test_short_rows_come_first_and_whole_ones_after_them(tiny, trainer_of, monkeypatch):
    shapes = []

    def loss(self, token_ids, targets, compute=TransformerLM.loss, **options):
        shapes.append(tuple(token_ids.shape))
        return compute(self, token_ids, targets, **options)

    monkeypatch.setattr(TransformerLM, "loss", loss)
    losses_of(trainer_of(tiny(steps=4, short_context=4, short_share=0.6, micro_batch_size=2)), steps=4)
    assert shapes == [(8, 4)] * 4 + [(2, 16)] * 4


def test_what_a_document_is_packed_with_changes_no_token_of_it(tiny, trainer_of):
    trainer = trainer_of(tiny(dropout=0.0))
    batch = next(batch for batch in map(trainer.batches.at, range(1, 100)) if bool((batch.segment_ids > 0).any()))
    other = batch.segment_ids > 0
    changed = batch.token_ids.where(~other, (batch.token_ids + 1) % trainer.model.config.vocab_size)
    with torch.no_grad():
        before = trainer.model(batch.token_ids, segment_ids=batch.segment_ids)
        after = trainer.model(changed, segment_ids=batch.segment_ids)
    assert torch.equal(before[~other], after[~other])
    assert not torch.equal(before[other], after[other])


def test_bfloat16_is_for_products_and_weights_stay_in_float32(tiny, trainer_of):
    trainer = trainer_of(tiny(dtype="bfloat16", dropout=0.0))
    exact = losses_of(trainer_of(tiny(dropout=0.0)))
    assert losses_of(trainer) == pytest.approx(exact, rel=1e-2)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_pure_bfloat16_computes_on_rounded_weights_and_moves_those_in_float32(tiny, trainer_of):
    trainer = trainer_of(tiny(dtype="bfloat16-pure", dropout=0.0))
    exact = losses_of(trainer_of(tiny(dropout=0.0)))
    assert losses_of(trainer) == pytest.approx(exact, rel=3e-2)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in trainer.computing.parameters()} == {torch.bfloat16}
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(trainer.computing.state_dict()[name], weight.bfloat16()), name


def test_micro_batches_in_pure_bfloat16_are_added_up_in_float32(tiny, trainer_of):
    whole, parts = (trainer_of(tiny(dtype="bfloat16-pure", dropout=0.0, micro_batch_size=size)) for size in (4, 1))
    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=1e-2)


def test_float16_scales_the_loss_and_gives_the_gradient_of_float32_but_for_rounding(tiny, trainer_of):
    norms = []
    for dtype in ("float32", "float16"):
        trainer = trainer_of(tiny(dtype=dtype, dropout=0.0))
        record = trainer.step(1)
        norms.append(record["grad_norm"])
        assert record["loss"] == pytest.approx(trainer_of(tiny(dropout=0.0)).step(1)["loss"], rel=1e-3)
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)
    assert record["loss_scale"] == 2.0**16


def test_an_overflow_of_float16_leaves_the_weights_and_halves_the_scale(tiny, trainer_of):
    trainer = trainer_of(tiny(dtype="float16"))
    trainer.loss_scale.scale = 2.0**40
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    record = trainer.step(1)
    assert record["skipped"] == "overflow"
    assert record["loss_scale"] == 2.0**39
    assert "grad_norm" not in record
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    assert trainer.optimizer.state_tensors() == {}
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert not (Path(trainer.config.out) / "batches").exists()


def test_a_gradient_of_targets_that_are_left_out_in_some_micro_batches_is_that_of_the_whole_batch(tiny, trainer_of):
    norms = []
    for size in (4, 1):
        trainer = trainer_of(tiny(micro_batch_size=size, dropout=0.0))
        batch = trainer.batches.at(1)
        targets = batch.targets.clone()
        targets[0, :13], targets[2] = -100, -100
        batch = batch._replace(targets=targets)
        trainer.batches.at = lambda step, batch=batch: batch
        record = trainer.step(1)
        norms.append((record["loss"], record["grad_norm"]))
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_step_without_any_target_moves_nothing_and_is_no_fault(tiny, trainer_of):
    trainer = trainer_of(tiny(micro_batch_size=2))
    batch = trainer.batches.at(1)
    trainer.batches.at = lambda step: batch._replace(targets=torch.full_like(batch.targets, -100))
    assert trainer.step(1)["loss"] == 0.0


def test_the_average_of_the_weights_is_evaluated_beside_them(tiny, trainer_of):
    for dtype in ("float32", "bfloat16-pure"):
        trainer = trainer_of(tiny(ema_decay=0.5, dtype=dtype))
        losses_of(trainer)
        own = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        record = trainer.glance(3)
        assert record["ema_eval_loss"] != record["eval_loss"]
        assert all(torch.equal(tensor, own[name]) for name, tensor in trainer.model.state_dict().items())
        plain = trainer_of(tiny(dtype=dtype))
        plain.model.load_state_dict(trainer.average.state_tensors())
        plain.passes.follow()
        assert plain.glance(3)["eval_loss"] == record["ema_eval_loss"]
        again = trainer.glance(3)
        assert again == record


def test_a_glance_that_is_stopped_gives_nothing_and_leaves_the_model_in_training(tiny, trainer_of):
    trainer = trainer_of(tiny())
    asked = iter([False, True])
    assert trainer.glance(3, lambda: next(asked)) is None
    assert trainer.evaluated == 0
    assert trainer.model.training


def test_weights_that_are_not_finite_are_never_saved(tiny, trainer_of):
    trainer = trainer_of(tiny())
    trainer.to_save()
    with torch.no_grad():
        trainer.model.lm_head.weight[3, 2] = float("nan")
    with pytest.raises(PrenormError, match=r"weights must stay finite to be saved, but are not in lm_head\.weight"):
        trainer.to_save()


def test_the_gradient_is_clipped_to_its_norm_and_that_is_reported_as_it_was(tiny, trainer_of):
    trainer = trainer_of(tiny(grad_clip=1e-3))
    norms = []
    trainer.optimizer.step = lambda scale: norms.append(
        torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item()
    )
    assert trainer.step(1)["grad_norm"] > 0.01
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused_before_the_weights_are_touched(tiny, trainer_of, value):
    trainer = trainer_of(tiny())
    with torch.no_grad():
        trainer.model.final_norm.weight[0] = value
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(PrenormError, match="the loss must stay a finite number, but at step 1 it is nan"):
        trainer.step(1)
    assert json.loads(next(Path(trainer.config.out).glob("batches/*.json")).read_text())["why"] == "not-finite"
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


def test_a_held_out_loss_that_is_no_number_is_refused_before_it_is_written(tiny, trainer_of):
    trainer = trainer_of(tiny())
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.nan)
    for evaluation in (trainer.glance, trainer.evaluate):
        with pytest.raises(PrenormError, match="held-out loss must stay a finite number, but after step 3 it is nan"):
            evaluation(3)


def test_a_glance_is_a_part_of_what_the_full_evaluation_scores(tiny, trainer_of):
    trainer = trainer_of(tiny(eval_batches=2))
    glance, full = trainer.glance(3), trainer.evaluate(3)
    assert glance.keys() == full.keys() == {"step", "eval_loss", "eval_bits_per_byte"}
    assert glance["eval_loss"] == pytest.approx(full["eval_loss"], rel=0.1)
    every = trainer_of(tiny(eval_batches=10**6))
    assert every.glance(3) == every.evaluate(3)


def compiling_with(backend):
    """`compile_blocks` by another compiler than PyTorch's own, which would take half a minute."""

    def compile_blocks(model, device, say):
        for block in model.layers:
            block.compile(backend=backend)
        return True

    return compile_blocks


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch.compile looks at its own
def test_compiling_ahead_changes_no_weight_and_leaves_no_gradient(tiny, trainer_of, monkeypatch, shapes_unchecked):
    shapes = set()

    def backend(graph, inputs):
        shapes.update(tuple(x.shape[:-1]) for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 3)
        return graph.forward

    monkeypatch.setattr(passes, "compile_blocks", compiling_with(backend))
    config = tiny(steps=4, short_context=4, short_share=0.5, dropout=0.1, compile=True)
    plain, compiled = trainer_of(config), trainer_of(config)
    compiled.compile(done=0)
    assert {(16, 4), (4, 16)} <= shapes  # both lengths of row were met before the first step
    assert all(parameter.grad is None for parameter in compiled.model.parameters())
    with use_backend("reference"):  # what is compiled holds the formulas, whose bits are not those of the kernels
        assert losses_of(compiled, steps=4) == losses_of(plain, steps=4)


def test_where_compiling_fails_the_run_goes_on_without(tiny, trainer_of, monkeypatch, capsys, shapes_unchecked):
    def backend(graph, inputs):
        raise RuntimeError("there are no headers")

    monkeypatch.setattr(passes, "compile_blocks", compiling_with(backend))
    trainer = trainer_of(tiny(compile=True))
    trainer.compile(done=0)
    assert all(block._compiled_call_impl is None for block in trainer.model.layers)
    assert losses_of(trainer, steps=2)
