"""A step on several ranks beside the same step in one process: what the tests of parallelism compare."""

import copy

import torch
from torch.distributed.tensor import DTensor

from prenorm import ModelConfig, TransformerLM, parallelize
from prenorm.distributed.gradients import clip_grad_norm_, loss_share
from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import Place, make_mesh

SMALL = {"vocab_size": 48, "d_model": 32, "num_layers": 2, "num_heads": 8, "num_kv_heads": 4, "d_ff": 64}
MAX_NORM = 0.5


def model_of(fields):
    """A model with weights of some size everywhere, biases and norms too."""
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig.from_dict(SMALL | fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


def batch_of(vocab_size, *, rows=8, seq=12, packed=False):
    """Tokens and targets; packed: documents, padding, and rows with very different numbers of targets."""
    generator = torch.Generator().manual_seed(1)
    token_ids, targets = torch.randint(0, vocab_size, (2, rows, seq), generator=generator)
    batch = {"token_ids": token_ids, "targets": targets}
    if packed:
        segments = torch.arange(seq).expand(rows, seq) // 5
        for row in range(rows):
            targets[row, : row + 2] = -100
        batch["segment_ids"] = segments.where(torch.arange(seq) < seq - 2, -1).contiguous()
    return batch


def num_targets(batch):
    kept = batch["targets"] != -100
    if "segment_ids" in batch:
        kept &= batch["segment_ids"] >= 0
    return int(kept.sum())


def errors(layouts, fields, *, packed=False, use_checkpointing=False, seq=12, dtype=torch.float32):
    """For each layout: how far loss, clipped norm and the worst gradient are from one process's, relatively."""
    found = []
    for sizes in layouts:
        layout = Layout(*sizes)
        place = Place(layout, torch.distributed.get_rank())
        mesh = make_mesh(layout)
        model = model_of(fields).to(dtype)
        single = copy.deepcopy(model)
        batch = batch_of(model.config.vocab_size, packed=packed, seq=seq)
        parallelize(model, mesh)

        expected = single.loss(**batch, use_checkpointing=use_checkpointing)
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(single.parameters(), MAX_NORM)

        rows = 8 // layout.data_ranks
        mine = {name: one[rows * place.data_rank :][:rows] for name, one in batch.items()}
        loss = model.loss(**mine, use_checkpointing=use_checkpointing) * loss_share(num_targets(mine), mesh)
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), MAX_NORM, mesh)
        mean = loss.detach().clone()
        for axis in ("dp", "fsdp"):
            torch.distributed.all_reduce(mean, group=mesh.get_group(axis))
        mean /= layout.data_ranks

        pairs = dict(single.named_parameters())
        grads = {name: whole(one.grad) for name, one in model.named_parameters()}
        assert grads.keys() == pairs.keys()
        # Without rotation a bias of the keys adds the same to all scores of a query: its gradient is zero, and noise.
        zero = "attn.k_proj.bias" if model.positions is not None else "none"
        worst = max(distance(grads[name], pairs[name].grad) for name in grads if not name.endswith(zero))
        found.append((distance(mean, expected), distance(norm, expected_norm), worst))
    return found


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distance(ours, theirs):
    """The norm of the difference over the norm."""
    return ((ours - theirs).norm() / theirs.norm()).item()
