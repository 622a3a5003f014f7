"""Every key of every family with values of every kind: refused by an error of ours, or the numbers of transformers."""

import copy
import re
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prenorm import TransformerLM
from prenorm.checkpoint.layouts import LAYOUTS, config_from_hugging_face
from prenorm.checkpoint.writing import naming_among, weights_from_hugging_face
from prenorm.errors import CheckpointError

from .families import FAMILIES, FULL, MIXED, SLIDING, fields_of

pytestmark = pytest.mark.slow

VALUES = [None, True, False, 1, 16, 0.5, "gelu", [SLIDING] * 3, [FULL] * 3, MIXED, [0, 1, 1]]
ROPES = [
    {"rope_type": "linear", "factor": 2.0},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "default", "rope_theta": 77.0, "partial_rotary_factor": 0.5},
]
FURTHER = ("head_dim", "layer_types", "sliding_window", "partial_rotary_factor", "mlp_bias", "clip_qkv", "rms_norm_eps")


def theirs(fields):
    config = AutoConfig.for_model(**copy.deepcopy(fields))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + (re.search(r"(norm|norms\.\d+|ln_\w)\.weight$", part) is not None))
    return model


@pytest.mark.parametrize("name", [name for name in FAMILIES if name == FAMILIES[name][0] or "longrope" in name])
@pytest.mark.usefixtures("shapes_unchecked")
def test_no_value_of_a_key_is_silently_another_number(name):
    model_type = FAMILIES[name][0]
    keys = {*LAYOUTS[model_type].keys, *FURTHER} - {"max_position_embeddings", "eos_token_id"}
    changes: list[dict[str, Any]] = [{key: value} for key in sorted(keys) for value in VALUES]
    changes += [{key: value} for key in ("rope_scaling", "rope_parameters") for value in ROPES]
    ids, opened = torch.randint(3, 61, (1, 90), generator=torch.Generator().manual_seed(1)), 0
    for change in changes:
        fields = {**fields_of(name), **change}
        try:
            config, _ = config_from_hugging_face(fields)
        except CheckpointError:
            continue
        try:
            model = theirs(fields)
            with torch.no_grad():
                wanted = model(ids, use_cache=False).logits
        except Exception:  # theirs has no numbers for this
            continue
        stored = model.state_dict()
        if config.tie_embeddings:
            stored.pop("lm_head.weight")
        ours = TransformerLM(config).eval()
        ours.load_state_dict(
            weights_from_hugging_face(
                config,
                stored,
                None,
                LAYOUTS[model_type].namings[naming_among(LAYOUTS[model_type], stored, tied=config.tie_embeddings)],
            )
        )
        with torch.no_grad():
            # Far above rounding, which sharp attention and large norms make large here, and far below other maths.
            assert (ours(ids) - wanted).abs().max() <= 1e-3 * wanted.abs().max(), change
        opened += 1
    assert opened > 5
