import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prenorm import ModelConfig, TransformerLM, use_backend
from prenorm.costs import flops
from prenorm.costs.architecture import Architecture, architecture_of
from prenorm.published import PUBLISHED

from .examples import FAMILIES, family_config, odd_configs


def counted(call):
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def total(parts):
    return sum(parts.values())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("every", [0, 1, 2])
def test_full_square_flops_are_those_that_pytorch_counts_forward_and_backward(every):
    for config in odd_configs(6, dropout=True):
        check_flops(config, every)


@pytest.mark.parametrize(("number", "name"), list(enumerate(FAMILIES)))
def test_flops_of_every_family_are_those_that_pytorch_counts(number, name):
    check_flops(family_config(name, dropout=0.1 * (number % 2)), every=number % 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_so_they_are_with_dropout_and_with_checkpointing(name):
    for every in (0, 1, 2):
        for dropout in (0.0, 0.1):
            check_flops(family_config(name, dropout=dropout), every)


def check_flops(config, every, batch=2, context=19):
    model, ours = TransformerLM(config, device="meta").train(), architecture_of(config)
    ids = torch.zeros(batch, context, dtype=torch.int64, device="meta")
    forward, logits = counted(lambda: model(ids, use_checkpointing=every))
    backward, _ = counted(lambda: logits.sum().backward())
    assert forward == total(flops.forward(ours, batch, context, causal=False))
    again = flops.recomputation(ours, batch, context, every, causal=False)
    assert backward == total(flops.backward(ours, batch, context, causal=False)) + total(again)


def test_windows_of_layers_are_counted_one_by_one():
    mixed = architecture_of(family_config("gemma2"))  # windows of 5 and of none
    alone = [architecture_of(dataclasses.replace(family_config("granite"), window=window)) for window in (5, None)]
    for count in (flops.forward, flops.decoded_token):
        both = [count(one, 2, 19, causal=True)["scores"] for one in alone]
        assert count(mixed, 2, 19, causal=True)["scores"] == sum(both) // 2
    parts = flops.recomputation(mixed, 2, 19, 2, causal=True)  # of the second layer alone
    assert parts["scores"] == flops.forward(alone[1], 2, 19, causal=True)["scores"] // 2


def test_a_step_with_the_loss_takes_as_many():
    config = next(odd_configs(1))
    model, ours = TransformerLM(config, device="meta").train(), architecture_of(config)
    ids = torch.zeros(2, 19, dtype=torch.int64, device="meta")
    found, _ = counted(lambda: model.loss(ids, ids).backward())
    assert found == 3 * total(flops.forward(ours, 2, 19, causal=False))


def test_a_decoded_token_takes_what_pytorch_counts():
    config = ModelConfig(vocab_size=31, d_model=24, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, d_ff=20)
    model, ids = TransformerLM(config).eval(), torch.zeros(3, 12, dtype=torch.int64)
    cache = model.make_cache(3, 12)
    with torch.no_grad(), use_backend("reference"):
        model(ids[:, :11], cache=cache)
        found, _ = counted(lambda: model(ids[:, 11:], cache=cache))
    assert found == total(flops.decoded_token(architecture_of(config), 3, 12, causal=False))


@pytest.mark.parametrize("window", [None, 1, 5, 19, 40])
def test_causal_exact_pairs_are_those_of_the_mask(window):
    behind = torch.arange(19)[:, None] - torch.arange(19)
    seen = (behind >= 0) & (behind < (window or 19))
    assert flops.pairs(19, window, causal=True) == int(seen.sum())
    assert flops.pairs(19, window, causal=False) == 19 * 19
    model = architecture_of(dataclasses.replace(ModelConfig.preset("gpt2"), window=window))
    assert flops.decoded_token(model, 1, 19, causal=True)["scores"] == 2 * 12 * 768 * int(seen[-1].sum())


def test_the_figures_of_the_page_about_the_text_book_account():
    fields = {"d_model": 4096, "num_heads": 32, "num_kv_heads": 32, "head_dim": 128, "d_ff": 11008, "num_layers": 1}
    block = Architecture(vocab_size=32000, max_seq_len=2048, **fields)
    full, causal = (flops.forward(block, 1, 2048, causal=one) for one in (False, True))
    parts = ("projections", "scores", "weighted_values", "feed_forward")
    assert [round(full[part] / 1e9, 2) for part in parts] == [274.88, 34.36, 34.36, 554.05]
    assert round(sum(full[part] for part in parts) / 1e9, 2) == 897.65
    assert round((causal["scores"] + causal["weighted_values"]) / 1e9, 2) == 34.38
    gpt3 = Architecture(**PUBLISHED["gpt3-175b"].fields)
    whole = [round(total(flops.forward(gpt3, 1, 2048, causal=one)) / 1e12, 1) for one in (False, True)]
    assert whole == [734.8, 724.9]


def test_the_rules_are_six_n_and_the_attention_that_it_leaves_out():
    model = architecture_of(ModelConfig.preset("gpt2"))
    assert flops.six_n(model, 1024) == 6 * 124_439_808 * 1024
    assert flops.six_n_and_attention(model, 1024, 1024) - flops.six_n(model, 1024) == 12 * 12 * 768 * 1024 * 1024
