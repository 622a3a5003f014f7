"""Loss, clipped norm and every gradient of several real processes are those of one process."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

import prenorm
from prenorm import ConfigError, TransformerBlock, TransformerLM, parallelize
from prenorm.distributed.data_parallel import no_sync
from prenorm.distributed.gradients import clip_grad_norm_, loss_share
from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import make_mesh
from prenorm.distributed.tensor_parallel import SplitLayer

from .one_process import batch_of, distance, errors, model_of, whole
from .processes import run

WITHIN = 1e-6
FAMILIES = {
    "tied": {"tie_embeddings": True},
    "qk_norm": {"qk_norm": True},
    "biases": {"qkv_bias": True, "o_bias": True},
    "post_norm": {"family": {"residual": "post", "ffn_bias": True, "activation": "gelu_tanh"}},
    "sandwich": {"family": {"residual": "sandwich", "one_plus_norms": True, "embedding_scale": 3.0}},
    "parallel": {"o_bias": True, "family": {"residual": "parallel", "norm": "layer", "logit_divisor": 2.0}},
    "two_norms": {"family": {"residual": "parallel_two_norms", "norm": "layer", "rotary_dim": 2}},
    "gpt2": {
        "tie_embeddings": True,
        "num_kv_heads": 8,
        "max_seq_len": 32,
        "qkv_bias": True,
        "o_bias": True,
        "family": {"norm": "layer", "gated": False, "activation": "gelu", "ffn_bias": True, "learned_positions": True},
    },
    "soft_caps": {"qk_norm": True, "family": {"attention_softcap": 5.0, "logit_softcap": 3.0, "windows": (4, 0)}},
}


def check(tmp_path, layouts, fields=None, **options):
    """The errors of all ranks are small."""
    world_size = Layout(*layouts[0]).world_size
    for rank, found in enumerate(run(errors_of, world_size, tmp_path, layouts, fields or {}, options)):
        for layout, far in zip(layouts, found, strict=True):
            assert max(far) <= WITHIN, (rank, layout, far)


def errors_of(layouts, fields, options):
    return errors(layouts, fields, **options)


def test_two_processes_along_each_axis(tmp_path):
    check(tmp_path, [(2, 1, 1), (1, 2, 1), (1, 1, 2)], packed=True)


def test_four_processes_in_products(tmp_path):
    check(tmp_path, [(2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)], {"tie_embeddings": True}, packed=True, seq=13)


@pytest.mark.long
@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": True, "vocab_size": 51}], ids=["plain", "tied"])
def test_eight_processes_in_products(tmp_path, fields):
    """With tp=8 there are twice as many ranks as key and value heads, and a rank without tokens of a short row."""
    layouts = [(2, 2, 2), (1, 2, 4), (2, 1, 4), (1, 4, 2), (4, 1, 2), (1, 1, 8), (1, 8, 1), (8, 1, 1), (2, 4, 1)]
    check(tmp_path, layouts, fields, packed=True, seq=10)


@pytest.mark.long
def test_three_and_six_processes(tmp_path):
    fields = {"d_model": 48, "num_heads": 6, "num_kv_heads": 3, "d_ff": 96}
    check(tmp_path, [(1, 1, 3)], fields, packed=True)
    check(tmp_path, [(2, 1, 3), (1, 2, 3), (1, 1, 6)], fields, packed=True)


@pytest.mark.long
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_families(tmp_path, fields):
    check(tmp_path, [(1, 1, 4), (1, 2, 2)], fields, packed=True)


def test_checkpointed_activations(tmp_path):
    check(tmp_path, [(1, 1, 2), (1, 2, 1), (2, 1, 1)], {"qk_norm": True}, use_checkpointing=True)
