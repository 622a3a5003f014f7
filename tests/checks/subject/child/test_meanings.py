"""What arguments mean, told by their names."""

import pytest

from prenorm.checks.subject.child.meanings import meaning_of


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("image_num_heads", "num_heads"),
        ("image_head_dim", "head_dim"),
        ("qk_rope_head_dim", None),
        ("embeddings_dims", "d_model"),
        ("feed_forward_multiplier", "expansion"),
        ("mlp_ratio", "expansion"),
        ("init_cutoff_factor", None),
    ],
)
def test_parts_of_a_name_tell_what_it_means(name: str, meaning: str | None) -> None:
    assert meaning_of(name, loosely=True) == meaning
