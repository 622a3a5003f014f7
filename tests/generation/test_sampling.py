import itertools
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prenorm.errors import ConfigError
from prenorm.generation.padding import pad
from prenorm.generation.sampling import Sampling, draw, random_streams, tokens_seen

LARGEST_UNIFORM = 1 - 2.0**-53

# Few different values, so that ties are common; none so small that the grid below misses it.
tied_logits = st.lists(st.integers(0, 3), min_size=1, max_size=8)


def drawn_ids(logits, **cuts):
    """Every token that can be drawn by a number in [0, 1)."""
    uniforms = torch.cat(
        (torch.arange(4096, dtype=torch.float64) / 4096, torch.tensor([LARGEST_UNIFORM], dtype=torch.float64))
    )
    rows = torch.as_tensor(logits).expand(len(uniforms), -1)
    return set(Sampling(**cuts).choose(rows, uniforms).tolist())


def ranked(weights):
    """Token ids by descending logit; of equal logits, the lower id first."""
    return sorted(range(len(weights)), key=lambda token: (-weights[token], token))


def zeros(count):
    return torch.zeros(count, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_temperature_0_takes_the_largest_logit_in_any_dtype(dtype):
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert Sampling(temperature=0).choose(logits, zeros(5)).tolist() == logits.argmax(-1).tolist()
    assert Sampling(top_k=1, top_p=0.5).choose(logits, zeros(5) + 0.5).tolist() == logits.argmax(-1).tolist()


@given(logits=tied_logits, uniform=st.floats(0, LARGEST_UNIFORM), temperature=st.floats(0.1, 1e30))
def test_top_k_of_1_is_greedy_also_with_ties(logits, uniform, temperature):
    row, uniforms = torch.tensor([logits]).float(), torch.tensor([uniform], dtype=torch.float64)
    greedy = Sampling(temperature=0).choose(row, uniforms)
    assert Sampling(temperature=temperature, top_k=1).choose(row, uniforms).tolist() == greedy.tolist()
    assert greedy.item() == ranked(logits)[0]


@given(logits=tied_logits, top_k=st.integers(1, 10))
def test_top_k_keeps_exactly_the_k_best(logits, top_k):
    assert drawn_ids(torch.tensor(logits).float(), top_k=top_k) == set(ranked(logits)[:top_k])


@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=8), top_p=st.floats(0.001, 1), top_k=st.integers(1, 9))
def test_top_p_keeps_the_fewest_tokens_that_reach_it_after_top_k(weights, top_p, top_k):
    best = ranked(weights)[:top_k]
    reached = np.cumsum([weights[token] for token in best]) / sum(weights[token] for token in best)
    assume(np.abs(reached[:-1] - top_p).min(initial=1) > 1e-9)  # rounding may fall either way exactly at the edge
    size = 1 + int((reached[:-1] < top_p).sum())
    assert drawn_ids(torch.tensor(weights).double().log(), top_k=top_k, top_p=top_p) == set(best[:size])


@pytest.mark.parametrize(("top_p", "size"), [(0.25, 1), (0.2501, 2), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_equal_tokens_enter_the_nucleus_by_id_and_only_as_many_as_reach_top_p(top_p, size):
    assert drawn_ids(torch.zeros(4), top_p=top_p) == set(range(size))


@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=8), min_p=st.floats(0.001, 1), top_k=st.integers(1, 9))
def test_min_p_keeps_what_is_at_least_that_share_of_the_best(weights, min_p, top_k):
    assume(all(abs(weight / max(weights) - min_p) > 1e-9 for weight in weights))  # rounding may fall either way there
    best = ranked(weights)[:top_k]
    kept = {token for token in best if weights[token] > min_p * max(weights)}
    assert drawn_ids(torch.tensor(weights).double().log(), top_k=top_k, min_p=min_p) == kept


def test_min_p_of_1_keeps_the_most_probable_and_its_equals():
    assert drawn_ids([1.0, 3.0, 3.0, 2.0], min_p=1) == {1, 2}
    assert drawn_ids([1.0, 3.0, 3.0, 2.0], min_p=1.0, temperature=0.5) == {1, 2}


@given(
    seed=st.integers(0, 10**6),
    penalty=st.none() | st.floats(0.5, 2),
    temperature=st.floats(0.5, 3),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.floats(0.05, 1),
    min_p=st.none() | st.floats(0.001, 0.9),
)
@settings(max_examples=100)
def test_the_distribution_is_that_of_the_processors_of_hugging_face(seed, penalty, temperature, top_k, top_p, min_p):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 40, generator=generator, dtype=torch.float64)  # no probability below 2^-52
    token_ids = torch.randint(0, 40, (3, 7), generator=generator)
    expected = logits
    for processor in (
        penalty and transformers.RepetitionPenaltyLogitsProcessor(penalty),
        transformers.TemperatureLogitsWarper(temperature),
        top_k and transformers.TopKLogitsWarper(top_k),
        top_p and transformers.TopPLogitsWarper(top_p),
        min_p and transformers.MinPLogitsWarper(min_p),
    ):
        expected = processor(token_ids, expected) if processor else expected
    sampling = Sampling(repetition_penalty=penalty, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    shares = sampling.fixed_point_probs(logits, tokens_seen(token_ids, None, 40)).double()
    torch.testing.assert_close(shares / shares.sum(-1, keepdim=True), expected.softmax(-1), atol=1e-12, rtol=0)
    assert torch.equal(shares > 0, expected > -torch.inf)
    greedy = Sampling(temperature=0, repetition_penalty=penalty)
    best = greedy.choose(logits, zeros(3), tokens_seen(token_ids, None, 40))
    changed = transformers.RepetitionPenaltyLogitsProcessor(penalty)(token_ids, logits) if penalty else logits
    assert torch.equal(best, changed.argmax(-1))


@given(rows=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_tokens_seen_are_those_of_the_row_and_no_padding(rows):
    seen = tokens_seen(*pad(rows), vocab_size=9)
    assert [set(row.nonzero()[:, 0].tolist()) for row in seen] == [set(row) for row in rows]


@pytest.mark.parametrize("penalty", [None, 1, 1.0])
def test_no_penalty_changes_no_bit(penalty):
    logits, seen = torch.randn(2, 9), torch.ones(2, 9, dtype=torch.bool)
    sampling = Sampling(repetition_penalty=penalty)
    assert not sampling.penalises
    assert torch.equal(sampling.fixed_point_probs(logits, seen), Sampling().fixed_point_probs(logits))


def test_the_penalty_of_half_precision_logits_makes_no_ties():
    logits = torch.tensor([[-1.9921875, -1.984375]], dtype=torch.bfloat16)  # neighbours; below -2 they lie wider apart
    seen = torch.ones(1, 2, dtype=torch.bool)
    assert Sampling(temperature=0, repetition_penalty=1.012).choose(logits, zeros(1), seen).tolist() == [1]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_penalty_that_leaves_no_finite_maximum_gives_minus_1(temperature):
    sampling = Sampling(temperature=temperature, repetition_penalty=1e-30)
    seen = torch.tensor([[True, False]])
    assert sampling.choose(torch.tensor([[1e20, 0.0]]), zeros(1), seen).tolist() == [-1]
    assert sampling.choose(torch.tensor([[1e20, 0.0]]), zeros(1), ~seen).tolist() == [0]


def test_any_leading_dims_are_rows():
    logits, uniforms = torch.randn(2, 3, 9), torch.rand(2, 3, dtype=torch.float64)
    sampling = Sampling(top_k=5, top_p=0.9, min_p=0.1)
    tokens = draw(sampling.fixed_point_probs(logits), uniforms)
    assert torch.equal(tokens.flatten(), sampling.choose(logits.flatten(0, 1), uniforms.flatten()))


def test_a_row_of_probability_0_gives_no_token():
    shares = torch.tensor([[0, 0, 0], [0, 5, 0]])
    assert draw(shares, zeros(2)).tolist() == [-1, 1]


def test_tokens_are_drawn_as_often_as_the_distribution_says():
    probabilities = torch.tensor([0.3, 0.01, 0.05, 0.2, 0.14, 0.1, 0.15, 0.05], dtype=torch.float64)
    for streams in (random_streams(7, 1, 20_000).flatten(), random_streams(7, 20_000, 1).flatten()):
        tokens = Sampling().choose(probabilities.log().float().expand(20_000, -1), streams)
        expected = 20_000 * probabilities
        chi_square = ((tokens.bincount(minlength=8) - expected) ** 2 / expected).sum()
        assert chi_square < 24.32  # 7 degrees of freedom, 99.9 %


def test_temperature_divides_the_logits():
    probabilities = torch.tensor([0.64, 0.32, 0.04], dtype=torch.float64)
    uniforms = random_streams(3, 1, 20_000).flatten()
    tokens = Sampling(temperature=2).choose(probabilities.log().expand(20_000, -1), uniforms)
    flattened = probabilities.sqrt() / probabilities.sqrt().sum()
    torch.testing.assert_close(tokens.bincount() / 20_000, flattened, atol=0.01, rtol=0, check_dtype=False)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-3])
def test_a_tiny_temperature_is_greedy_and_never_overflows(temperature):
    assert drawn_ids([1e4, 3e4, -3e4, 3e4 - 100], temperature=temperature) == {1}


@given(logits=tied_logits, uniform=st.floats(0, LARGEST_UNIFORM))
def test_a_token_of_probability_0_is_never_drawn(logits, uniform):
    row = torch.tensor([[-torch.inf, *logits, -torch.inf]])
    token = Sampling().choose(row, torch.tensor([uniform], dtype=torch.float64)).item()
    assert 1 <= token <= len(logits)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [[0, math.nan], [math.nan, math.inf], [math.inf, 0], [-math.inf, -math.inf]])
def test_a_row_without_a_finite_maximum_gives_minus_1_and_leaves_the_others_alone(bad, temperature):
    logits = torch.tensor([[5.0, -torch.inf], bad, [-torch.inf, 5.0]])
    assert Sampling(temperature=temperature, top_p=0.9).choose(logits, zeros(3)).tolist() == [0, -1, 1]


@pytest.mark.parametrize("vocab", [1, 2, 3])
def test_a_row_of_nothing_but_nan_gives_minus_1_after_any_cut(vocab):
    logits = torch.full((1, vocab), torch.nan)
    assert Sampling(top_k=2, top_p=0.5).choose(logits, zeros(1)).tolist() == [-1]


def test_no_rows_give_no_tokens():
    assert Sampling(top_k=2).choose(torch.zeros(0, 5), zeros(0)).shape == (0,)


@given(seed=st.integers(0, 2**64 - 1), prompts=st.integers(1, 4), steps=st.integers(0, 9), more=st.integers(0, 5))
def test_a_stream_is_a_function_of_seed_prompt_and_step_alone(seed, prompts, steps, more):
    streams = random_streams(seed, prompts, steps)
    assert streams.shape == (steps, prompts)
    assert torch.equal(random_streams(seed, prompts + more, steps + more)[:steps, :prompts], streams)
    assert torch.equal(random_streams([5] * more + [seed], more + 1, steps)[:, -1], streams[:, 0])


def test_different_seeds_and_prompts_have_different_streams():
    columns = torch.cat([random_streams(seed, 50, 3) for seed in range(50)], dim=1).T
    assert len(columns.unique(dim=0)) == 2500


def test_no_seed_is_another_stream_each_time():
    assert not torch.equal(random_streams(None, 2, 5), random_streams(None, 2, 5))


def test_streams_are_philox_with_the_stream_as_key():
    words = [word for counter in (1, 2) for word in philox_4x64(counter, (123, 4))]
    expected = [(word >> 11) * 2.0**-53 for word in words]
    assert random_streams(123, 5, 8)[:, 4].tolist() == expected


def test_a_substream_is_the_highest_word_of_the_counter():
    words = [word for counter in (1, 2) for word in philox_4x64(counter, (123, 4), substream=2)]
    assert random_streams(123, 5, 8, substream=2)[:, 4].tolist() == [(word >> 11) * 2.0**-53 for word in words]


def philox_4x64(counter, key, substream=0):
    """Ten rounds of Salmon et al. 2011, in Python's integers."""
    x, mask = [counter, 0, 0, substream], 2**64 - 1
    for key_0, key_1 in itertools.islice(zip(itertools.count(key[0], 0x9E3779B97F4A7C15),
                                             itertools.count(key[1], 0xBB67AE8584CAA73B)), 10):  # fmt: skip
        product_0, product_1 = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [
            (product_1 >> 64) ^ x[1] ^ (key_0 & mask),
            product_1 & mask,
            (product_0 >> 64) ^ x[3] ^ (key_1 & mask),
            product_0 & mask,
        ]
    return x


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ({"temperature": -0.5}, "temperature must be at least 0"),
        ({"temperature": math.nan}, "temperature must be a finite number"),
        ({"temperature": math.inf}, "temperature must be a finite number"),
        ({"top_k": 0}, "top_k must be an integer of at least 1, not 0"),
        ({"top_p": 0.0}, "top_p must be greater than 0"),
        ({"top_p": 1.5}, "top_p is a probability, but 1.5 is greater than 1"),
        ({"top_p": math.nan}, "top_p must be a finite number"),
        ({"min_p": 0}, "min_p must be greater than 0, not 0"),
        ({"min_p": 1.5}, "min_p is a probability, but 1.5 is greater than 1; 1 keeps only the most probable"),
        ({"min_p": math.nan}, "min_p must be a finite number"),
        ({"repetition_penalty": 0}, "repetition_penalty must be greater than 0, not 0"),
        ({"repetition_penalty": -1.5}, "repetition_penalty must be greater than 0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be a finite number"),
    ],
)
def test_impossible_cuts_are_refused(cuts, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**cuts)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, "from 0 to 2\\^64 - 1, not -1"),
        (2**64, "from 0 to 2\\^64 - 1"),
        (True, "not True"),
        (0.5, "not 0.5"),
        ([1, "x"], "not 'x'"),
        ([1], "there are 1 seeds and 2 prompts"),
        ([1, 2, 3], "there are 3 seeds and 2 prompts"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_impossible_seeds_are_refused(seed, message):
    with pytest.raises(ConfigError, match=message):
        random_streams(seed, 2, 5)
