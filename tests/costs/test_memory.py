import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from prenorm import ModelConfig, TransformerLM
from prenorm.costs.architecture import architecture_of
from prenorm.costs.memory import kv_cache, optimizer_state, peak
from prenorm.family import Family
from prenorm.training.config import TrainConfig
from prenorm.training.optimizer import MuonAndAdamW

from .examples import FAMILIES, family_config, odd_configs

# What is largest: weights and activations, logits, what many layers save, the optimiser's step, a window's mask.
SIZES = {
    "wide": (ModelConfig(vocab_size=500, d_model=128, num_layers=3, num_heads=4, tie_embeddings=True), 2, 256),
    "vocabulary": (ModelConfig(vocab_size=9000, d_model=32, num_layers=1, num_heads=2, tie_embeddings=True), 4, 256),
    "deep": (ModelConfig(vocab_size=300, d_model=32, num_layers=5, num_heads=2, qk_norm=True), 4, 128),
    "few tokens": (ModelConfig(vocab_size=9000, d_model=64, num_layers=2, num_heads=2, tie_embeddings=True), 1, 32),
    "gpt2": (family_config("gpt2", d_model=64, num_layers=3, head_dim=16, d_ff=256, vocab_size=300), 4, 128),
    "gemma2": (family_config("gemma2", d_model=64, head_dim=16, d_ff=256, vocab_size=300), 4, 128),
    "divided": (family_config("cohere", num_layers=1, vocab_size=9000, tie_embeddings=True), 4, 128),
    "wide head": (family_config("cohere", num_layers=1, vocab_size=9000, d_model=512), 1, 64),
    "olmo2": (family_config("olmo2", d_model=64, head_dim=16, d_ff=256, vocab_size=300), 4, 128),
    "window": (ModelConfig(vocab_size=300, d_model=16, num_layers=1, num_heads=1, d_ff=32, window=50), 1, 512),
}


def optimizers(model, name):
    if name == "adamw":
        return [torch.optim.AdamW(model.parameters(), fused=True)]
    return MuonAndAdamW(model, TrainConfig.from_fields({"preset": "tiny"})).optimizers


def tracked_peak(config, batch, context, dtype, every, optimizer):
    """The peak bytes that MemTracker sees in a second step, when the optimiser state exists."""
    model = TransformerLM(config).train()
    used = optimizers(model, optimizer)
    ids, targets = (torch.zeros(batch, context, dtype=torch.int64) for _ in range(2))
    tracker = MemTracker()
    tracker.track_external(model, *used, ids, targets)
    with tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = model.loss(ids, targets, use_checkpointing=every)
            loss.backward()
            for one in used:
                one.step()
                one.zero_grad(set_to_none=True)
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("size", "dtype", "optimizer", "every"),
    [
        *[("wide", "float32", "adamw", 0), ("wide", "bfloat16", "muon", 1)],
        *[("vocabulary", "float32", "muon", 0), ("vocabulary", "bfloat16", "adamw", 1)],
        *[("deep", "float32", "adamw", 1), ("deep", "bfloat16", "muon", 0)],
        *[("few tokens", "float32", "adamw", 0), ("few tokens", "bfloat16", "muon", 0)],
        *[("gpt2", "float32", "adamw", 0), ("gpt2", "bfloat16", "muon", 1)],
        *[("gemma2", "float32", "adamw", 0), ("gemma2", "bfloat16", "muon", 1)],
        *[("divided", "float32", "adamw", 0), ("wide head", "bfloat16", "adamw", 0), ("olmo2", "bfloat16", "muon", 1)],
        *[("window", "float32", "muon", 1), ("window", "bfloat16", "adamw", 0)],
    ],
)
def test_the_peak_of_a_step_is_within_5_percent_of_what_mem_tracker_sees(
    size, dtype, optimizer, every, shapes_unchecked
):
    config, batch, context = SIZES[size]
    found = tracked_peak(config, batch, context, dtype, every, optimizer)
    options = {"dtype": dtype, "optimizer": optimizer, "every": every}
    assert peak(architecture_of(config), batch, context, **options, watched=True) == pytest.approx(found, rel=0.05)


def test_a_head_that_is_watched_keeps_its_logits_and_a_tied_one_is_never_called():
    config = SIZES["vocabulary"][0]
    untied = ModelConfig(**{**config.to_dict(), "tie_embeddings": False})
    for one, more in ((config, False), (untied, True)):
        plain, watched = (
            peak(architecture_of(one), 4, 256, dtype="float32", optimizer="adamw", watched=w) for w in (False, True)
        )
        assert (watched > plain) == more


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_state_of_an_optimiser_is_counted_to_the_byte(optimizer):
    for config in (*odd_configs(6), *map(family_config, FAMILIES)):
        model = TransformerLM(config)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        states = []
        for one in optimizers(model, optimizer):
            one.step()
            states += [value.nbytes for state in one.state.values() for value in state.values()]
        assert sum(states) == optimizer_state(architecture_of(config), optimizer)


@pytest.mark.parametrize("windows", [(0, 0, 0), (5, 5, 5), (40, 40, 40), (5, 0, 40)])
def test_a_cache_takes_what_is_counted_and_a_slot_a_row_for_padding(windows):
    config = ModelConfig(
        **{"vocab_size": 7, "d_model": 24, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2},
        **{"head_dim": 8, "d_ff": 8, "max_seq_len": 32, "family": Family(windows=windows)},
    )
    for dtype in ("float32", "bfloat16"):
        cache = TransformerLM(config).make_cache(2, 17, getattr(torch, dtype))
        found = sum(tensor[:, :, :-1].nbytes for layer in cache for tensor in (layer.keys, layer.values))
        assert kv_cache(architecture_of(config), 2, 17, dtype) == found
