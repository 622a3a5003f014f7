import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations
from torch.testing._internal.two_tensor import TwoTensor

from prenorm import CheckpointError, ModelConfig, TransformerLM
from prenorm.checkpoint.whole import whole_tensors

WHERE = ("layers", "0", "attn", "q_proj")


class Negated(nn.Module):
    def forward(self, weight):
        return -weight


class Named(nn.Parameter):
    """A Parameter with a name of its own, and no other numbers."""


def model(**changes):
    return TransformerLM(ModelConfig(**{"vocab_size": 61, "d_model": 16, "num_layers": 1, "num_heads": 2, **changes}))


def part_of(one):
    return one.get_submodule(".".join(WHERE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda one: one.to("meta"),
            r"embedding.weight is on the meta device and has no data; load .*; and \d+ more\.$",
        ),
        (
            lambda one: register_parametrization(part_of(one), "weight", Negated()),
            r"q_proj.parametrizations.weight.original is an input of a parametrisation, not the weight itself; apply "
            r"torch.nn.utils.parametrize.remove_parametrizations to layers.0.attn.q_proj",
        ),
        (
            lambda one: setattr(
                part_of(one), "weight", nn.Parameter(TwoTensor(torch.ones(16, 16), torch.ones(16, 16)))
            ),
            "layers.0.attn.q_proj.weight is a TwoTensor, whose storage format is known only to its own code",
        ),
        (
            lambda one: setattr(part_of(one), "weight", nn.Parameter(torch.eye(16).to_sparse())),
            "layers.0.attn.q_proj.weight is sparse_coo; .to_dense",
        ),
    ],
    ids=["meta", "parametrised", "a wrapper", "sparse"],
)
def test_what_has_no_plain_numbers_is_refused_by_name_and_nothing_is_written(change, message, tmp_path):
    one = model()
    change(one)
    with pytest.raises(CheckpointError, match=f"^the model to save: .*{message}"):
        one.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_way_out_of_a_parametrised_weight_is_one(tmp_path):
    one = model()
    register_parametrization(part_of(one), "weight", Negated())
    ids = torch.arange(5)
    logits = one(ids)
    remove_parametrizations(part_of(one), "weight")
    one.save_pretrained(tmp_path)
    assert torch.equal(TransformerLM.from_pretrained(tmp_path)(ids), logits)


def rolled_out(weight):
    return weight[:1].expand_as(weight)


@pytest.mark.parametrize(
    "made", [Named, lambda w: nn.Parameter(w.t().contiguous().t()), lambda w: nn.Parameter(rolled_out(w))]
)
def test_a_weight_of_any_strides_or_parameter_class_is_saved(made, tmp_path):
    one = model()
    part_of(one).weight = made(part_of(one).weight.detach())
    one.save_pretrained(tmp_path)
    assert torch.equal(part_of(TransformerLM.from_pretrained(tmp_path)).weight, part_of(one).weight)


def test_weights_that_share_memory_are_saved_each_by_itself(tmp_path):
    one = model()
    one.lm_head.weight = one.embedding.weight
    one.save_pretrained(tmp_path)
    opened = TransformerLM.from_pretrained(tmp_path)
    assert torch.equal(opened.lm_head.weight, opened.embedding.weight)
    assert opened.lm_head.weight is not opened.embedding.weight


def test_plain_tensors_pass_as_they_are():
    tensors = {"a": torch.ones(2), "b": nn.Parameter(torch.ones(2))}
    assert all(type(tensor) is torch.Tensor for tensor in whole_tensors(tensors).values())
