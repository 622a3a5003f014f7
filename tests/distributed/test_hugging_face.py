"""A model that processes share becomes one Hugging Face folder: gathered by them, or opened from their checkpoint."""

import pytest
import torch
import torch.distributed as dist

from prenorm import ModelConfig, TransformerLM
from prenorm.distributed.checkpoints import gathered, group_for_checkpoints
from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import make_mesh
from prenorm.distributed.parallelize import parallelize
from prenorm.training.checkpoint_writer import CheckpointWriter
from prenorm.training.checkpoints import latest_checkpoint, read_parts
from prenorm.training.config import TrainConfig

from .processes import run

CONFIG = ModelConfig(
    vocab_size=40, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=24, max_seq_len=16, qkv_bias=True
)
TIED = ModelConfig(vocab_size=41, d_model=16, num_layers=2, num_heads=4, d_ff=24, max_seq_len=16, tie_embeddings=True)
RUN = TrainConfig.from_fields({"preset": "tiny", "keep_checkpoints": 2})


def model_of(config, seed):
    torch.manual_seed(seed)
    return TransformerLM(config)


def save_spread(config, layout, home):
    """One checkpoint of the model and an optimiser, and a folder of what the processes gather."""
    model, group = parallelize(model_of(config, 1), make_mesh(layout)), group_for_checkpoints(30.0)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in named.values():
        parameter.grad = parameter.detach() * 0.5
    optimizer.step()
    state = {f"{name}:{what}": one for name, weight in named.items() for what, one in optimizer.state[weight].items()}
    with CheckpointWriter(home, RUN, {}, group) as writer:
        writer.save(1, {"model": model.state_dict(), "optimizer": state}, {})
    tensors = gathered(model.state_dict(), group)
    if dist.get_rank() == 0:
        whole = TransformerLM(config)
        whole.load_state_dict(tensors)
        whole.save_pretrained(home / "gathered")


def open_spread(config, layout, home):
    """Whether the checkpoint, opened in this layout, is what one process has: the model and its optimiser's state."""
    model, group = parallelize(model_of(config, 2), make_mesh(layout)), group_for_checkpoints(30.0)
    parts = read_parts(latest_checkpoint(home), ["model", "optimizer"], like=model.state_dict(), group=group)
    model.load_state_dict(parts["model"])
    alone = read_parts(latest_checkpoint(home), ["model", "optimizer"])
    whole = {"model": gathered(model.state_dict(), group), "optimizer": gathered(parts["optimizer"], group)}
    if dist.get_rank() == 0:
        for part, tensors in alone.items():
            assert whole[part].keys() == tensors.keys()
            assert all(torch.equal(whole[part][name], one) for name, one in tensors.items()), part


@pytest.mark.parametrize(
    "config",
    [pytest.param(CONFIG, marks=pytest.mark.long, id="biases, grouped heads"), pytest.param(TIED, id="tied")],
)
def test_a_shared_model_is_one_folder_in_the_end(config, tmp_path):
    expected = model_of(config, 1)
    optimizer = torch.optim.AdamW(expected.parameters())
    for parameter in expected.parameters():
        parameter.grad = parameter.detach() * 0.5
    optimizer.step()
    expected.save_pretrained(tmp_path / "expected")
    run(save_spread, 4, tmp_path, config, Layout(fsdp=2, tp=2), tmp_path)
    opened = TransformerLM(config)
    opened.load_state_dict(read_parts(latest_checkpoint(tmp_path), ["model"])["model"])
    opened.save_pretrained(tmp_path / "opened")
    for name in ("config.json", "model.safetensors"):
        saved = (tmp_path / "expected" / name).read_bytes()
        assert (tmp_path / "opened" / name).read_bytes() == saved
        assert (tmp_path / "gathered" / name).read_bytes() == saved
    run(open_spread, 2, tmp_path, config, Layout(dp=2), tmp_path)
    run(open_spread, 2, tmp_path, config, Layout(tp=2), tmp_path)
