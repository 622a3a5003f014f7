import pytest

from prenorm import TransformerLM
from prenorm.costs.architecture import Architecture, architecture_of
from prenorm.costs.parameters import block_matrices, parameters, tensors, total
from prenorm.published import PUBLISHED

from .examples import FAMILIES, family_config, odd_configs


def test_the_parts_are_those_of_the_model_that_is_built():
    for config in (*odd_configs(30), *map(family_config, FAMILIES)):
        model, counted = TransformerLM(config, device="meta"), architecture_of(config)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        parts = {
            "embedding": ["embedding."],
            "positions": ["positions."],
            "attention": ["_proj.", "attn."],
            "feed_forward": ["ffn."],
            "norms": ["norm"],
            "head": ["lm_head."],
        }
        found = dict.fromkeys(parts, 0)
        for name, size in sizes.items():
            part = next(
                p
                for p in ("norms", "feed_forward", "attention", "positions", "embedding", "head")
                if _in(name, parts[p])
            )
            found[part] += size
        assert found == parameters(counted)
        assert total(counted) == sum(sizes.values())
        assert tensors(counted) == len(sizes)
        matrices = (p.numel() for name, p in model.named_parameters() if name.startswith("layers.") and p.ndim == 2)
        assert block_matrices(counted) == sum(matrices)


def _in(name, marks):
    return any(mark in name for mark in marks)


@pytest.mark.parametrize("name", [name for name, model in PUBLISHED.items() if model.foreign])
def test_models_of_other_blocks_have_their_published_counts(name):
    assert total(Architecture(**PUBLISHED[name].fields)) == PUBLISHED[name].parameters
