import pytest
import torch

from prenorm import EncoderDecoder, EncoderDecoderConfig, ModelConfig, TransformerLM
from prenorm.errors import CheckpointError
from prenorm.training.config import TrainConfig
from prenorm.training.optimizer import MuonAndAdamW

CONFIG = TrainConfig.from_fields({"preset": "tiny", "weight_decay": 0.1, "embedding_lr": 0.02})


def model_of(**fields):
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(40, d_model=16, num_layers=2, num_heads=2, max_seq_len=16, **fields))


def train(model, optimizer, steps):
    for step in steps:
        tokens = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(step))
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step(1 / step)


def groups_of(optimizer, model):
    """The names that each learning rate and optimiser is for."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        (type(each).__name__, group["lr"], group["weight_decay"]): [names[p] for p in group["params"]]
        for each in optimizer.optimizers
        for group in each.param_groups
    }


def test_muon_has_the_blocks_matrices_and_adamw_the_rest_each_once():
    model = model_of(qkv_bias=True, qk_norm=True)
    groups = groups_of(MuonAndAdamW(model, CONFIG), model)
    matrices = groups.pop(("Muon", CONFIG.muon_lr, 0.1))
    assert len(matrices) == 2 * 7
    assert all(name.startswith("layers.") and name.endswith("_proj.weight") for name in matrices)
    assert groups.pop(("AdamW", CONFIG.embedding_lr, 0.0)) == ["embedding.weight"]
    assert groups.pop(("AdamW", CONFIG.head_lr, 0.1)) == ["lm_head.weight"]
    vectors = groups.pop(("AdamW", CONFIG.vector_lr, 0.0))
    assert len(matrices) + len(vectors) + 2 == len(list(model.parameters()))
    assert groups == {}


def test_a_tied_head_is_the_embedding():
    model = model_of(tie_embeddings=True)
    groups = groups_of(MuonAndAdamW(model, CONFIG), model)
    assert groups["AdamW", CONFIG.embedding_lr, 0.0] == ["embedding.weight"]
    assert ("AdamW", CONFIG.head_lr, 0.1) not in groups


def test_adamw_alone_has_one_learning_rate_and_decays_matrices_and_an_untied_head():
    config = TrainConfig.from_fields({"preset": "tiny", "optimizer": "adamw", "lr": 0.004, "weight_decay": 0.1})
    model = model_of(qkv_bias=True, qk_norm=True)
    optimizer = MuonAndAdamW(model, config)
    assert [type(one) for one in optimizer.optimizers] == [torch.optim.AdamW]
    groups = [group for one in optimizer.optimizers for group in one.param_groups]
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {names[p] for group in groups if group["weight_decay"] == 0.1 for p in group["params"]}
    kept = {names[p] for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert {group["lr"] for group in groups} == {optimizer.full_rate} == {0.004}
    assert decayed == {name for name in names.values() if name.endswith("_proj.weight")} | {"lm_head.weight"}
    assert kept == set(names.values()) - decayed
    assert {"embedding.weight", "final_norm.weight", "layers.0.attn.q_proj.bias"} <= kept


def test_a_step_follows_the_scale_and_drops_the_gradients():
    model = model_of()
    optimizer = MuonAndAdamW(model, CONFIG)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tokens = torch.arange(9)
    model.loss(tokens[:-1], tokens[1:]).backward()
    optimizer.step(0.0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_restored_optimiser_takes_the_same_steps_bit_for_bit():
    model = model_of()
    optimizer = MuonAndAdamW(model, CONFIG)
    train(model, optimizer, range(1, 4))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    assert state["layers.0.attn.q_proj.weight:momentum_buffer"].shape == (16, 16)
    assert state["embedding.weight:step"] == 3
    train(model, optimizer, range(4, 7))

    again = model_of()
    again.load_state_dict(weights)
    restored = MuonAndAdamW(again, CONFIG)
    restored.load_state_tensors(state)
    train(again, restored, range(4, 7))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for name, tensor in optimizer.state_tensors().items():
        assert torch.equal(tensor, restored.state_tensors()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("layers.0.attn.q_proj.weight:momentum_buffer"),
            r"q_proj\.weight:momentum_buffer is m",
        ),
        (lambda state: state.pop("embedding.weight:step"), r"embedding\.weight:step is missing"),
        (
            lambda state: state.update({"layers.9.norm1.weight:exp_avg": torch.zeros(16)}),
            r"no layers\.9\.norm1\.weight",
        ),
        (lambda state: state.update({"embedding.weight:max": torch.zeros(16)}), r"no embedding\.weight:max"),
        (lambda state: state.update({"embedding.weight:exp_avg": torch.zeros(16)}), r"has shape \(16,\) where \("),
    ],
)
def test_state_of_another_model_is_refused_and_nothing_is_changed(change, message):
    model = model_of()
    optimizer = MuonAndAdamW(model, CONFIG)
    train(model, optimizer, range(1, 2))
    before = optimizer.state_tensors()
    state = dict(before)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_tensors(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state_tensors().items())


def test_an_optimiser_that_took_no_step_has_no_state_and_takes_none():
    optimizer = MuonAndAdamW(model_of(), CONFIG)
    optimizer.load_state_tensors(optimizer.state_tensors())
    assert optimizer.state_tensors() == {}


def test_every_embedding_of_an_encoder_decoder_is_an_embedding():
    config = EncoderDecoderConfig(11, 8, 1, 2, tie_embeddings=False, positions="learned")
    optimizer = MuonAndAdamW(EncoderDecoder(config), CONFIG)
    muon = {name for name in optimizer._names.values() if "embedding" in name} & names_of(optimizer, torch.optim.Muon)
    assert muon == set()
    assert "encoder.layers.0.ffn.up_proj.weight" in names_of(optimizer, torch.optim.Muon)


def names_of(optimizer, kind):
    """The parameters that one of the two optimisers has."""
    (own,) = (one for one in optimizer.optimizers if isinstance(one, kind))
    return {optimizer._names[parameter] for group in own.param_groups for parameter in group["params"]}
