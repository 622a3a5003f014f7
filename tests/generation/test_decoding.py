import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm import EncoderDecoder, EncoderDecoderConfig, ModelConfig, TransformerLM
from prenorm.errors import ConfigError, PrenormError, RangeError
from prenorm.generation import decoding
from prenorm.generation.sampling import Sampling, random_streams

from .traffic import Traffic, per_step

RAGGED = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]

prompt_lists = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=1, max_size=4)


def argmax_loop(model, prompt, max_new_tokens):
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(model.logits(tokens).argmax()))
    return tokens[len(prompt) :]


def test_greedy_is_the_argmax_of_the_whole_text_so_far(toy):
    expected = [argmax_loop(toy, prompt, 12) for prompt in RAGGED]
    assert toy.generate(RAGGED, max_new_tokens=12, temperature=0) == expected


@given(
    prompts=prompt_lists,
    temperature=st.sampled_from([0, 0.7, 1.0]),
    min_p=st.sampled_from([None, 0.1]),
    penalty=st.sampled_from([None, 0.8, 1.5]),
    eos=st.sets(st.integers(0, 10), max_size=2),
)
def test_a_ragged_batch_is_its_prompts_one_by_one(prompts, temperature, min_p, penalty, eos, make_toy):
    options = {"max_new_tokens": 6, "temperature": temperature, "top_k": 5, "eos_token_id": tuple(eos)}
    options |= {"min_p": min_p, "repetition_penalty": penalty}
    seeds = list(range(len(prompts)))
    together = make_toy().generate(prompts, seed=seeds, **options)
    alone = [
        make_toy().generate([prompt], seed=seed, **options)[0] for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together == alone


def test_a_prompt_with_its_own_seed_gets_the_same_tokens_in_any_batch(toy):
    (alone,) = toy.generate([[1, 2]], seed=5, max_new_tokens=20)
    assert toy.generate([[3], [1, 2]], seed=[9, 5], max_new_tokens=20)[1] == alone
    assert toy.generate([[1, 2], [3]], seed=5, max_new_tokens=20)[0] == alone
    assert toy.generate([[1, 2], [1, 2]], seed=5, max_new_tokens=20)[1] != alone


def test_fewer_new_tokens_are_the_beginning_of_more(toy):
    assert toy.generate(RAGGED, seed=1, max_new_tokens=4) == [
        reply[:4] for reply in toy.generate(RAGGED, seed=1, max_new_tokens=9)
    ]


def test_tokens_are_chosen_by_the_numbers_of_the_first_substream(toy):
    numbers = random_streams(7, 1, 9)[:, 0]
    tokens = [1, 2]
    for number in numbers:
        tokens.append(int(Sampling(top_k=6).choose(toy.logits(tokens)[None], number[None])))
    assert toy.generate([[1, 2]], seed=7, top_k=6, max_new_tokens=9) == [tokens[2:]]


def penalised(logits, tokens, penalty):
    """Keskar et al. 2019, token by token."""
    logits = logits.clone()
    for token in set(tokens):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    return logits


@given(prompts=prompt_lists, penalty=st.sampled_from([0.5, 1.3, 3]))
def test_the_penalty_is_for_the_tokens_of_prompt_and_reply(prompts, penalty, make_toy):
    toy = make_toy()
    for prompt, reply in zip(
        prompts, toy.generate(prompts, repetition_penalty=penalty, temperature=0, max_new_tokens=9), strict=True
    ):
        tokens = list(prompt)
        for _ in range(9):
            tokens.append(int(penalised(toy.logits(tokens), tokens, penalty).argmax()))
        assert reply == tokens[len(prompt) :]


def test_what_a_cache_of_the_caller_holds_is_not_penalised(toy):
    toy.logits = lambda history: torch.arange(11.0).flip(0)  # 0 is the best token, then 1
    options = {"temperature": 0, "repetition_penalty": 1e6, "max_new_tokens": 2}
    assert toy.generate([[2, 3]], cache=[[0]], **options) == [[0, 1]]
    assert toy.generate([[0, 2, 3]], **options) == [[1, 4]]


@given(prompts=prompt_lists, eos=st.sets(st.integers(0, 10), max_size=2))
def test_logprobs_are_the_models_own_before_penalty_temperature_and_cuts(prompts, eos, make_toy):
    toy = make_toy()
    options = {"temperature": 0.6, "top_k": 5, "repetition_penalty": 1.5, "eos_token_id": tuple(eos)}
    options |= {"seed": 0, "max_new_tokens": 5}
    replies, logprobs = toy.generate(prompts, logprobs=True, **options)
    assert replies == toy.generate(prompts, logprobs=False, **options) == toy.generate(prompts, **options)
    for prompt, reply, given_logprobs in zip(prompts, replies, logprobs, strict=True):
        rows = [toy.logits(prompt + reply[:place]).log_softmax(-1) for place in range(len(reply))]
        assert given_logprobs == [float(row[token]) for row, token in zip(rows, reply, strict=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logprobs_are_natural_and_computed_in_float32_or_wider(dtype):
    logits = torch.tensor([[0.3, -1.0, 2.0]]).to(dtype)
    options = {"vocab_size": 3, "max_seq_len": 9, "max_new_tokens": 1, "temperature": 0, "logprobs": True}
    generated: Any = decoding.generate(lambda *args, **more: logits, lambda **sizes: [], [[1]], **options)
    replies, ((logprob,),) = generated
    wide = [float(one) for one in logits[0]]
    assert replies == [[2]]
    expected = wide[2] - math.log(sum(map(math.exp, wide)))
    assert logprob == pytest.approx(expected, abs=1e-15 if dtype == torch.float64 else 1e-7)


def test_a_stream_gives_logprobs_beside_the_tokens_and_none_after_the_end(scripted):
    model = scripted([[1, 7], [2, 3, 7]], vocab_size=8)
    steps = list(model.stream([[1], [1]], max_new_tokens=9, temperature=0, eos_token_id=7, logprobs=True))
    assert steps == [([1, 2], [0.0, 0.0]), ([7, 3], [0.0, 0.0]), ([None, 7], [None, 0.0])]


def test_no_prompts_have_no_logprobs(toy):
    assert toy.generate([], logprobs=True) == ([], [])
    assert toy.generate([[1]], logprobs=True, max_new_tokens=0) == ([[]], [[]])


def test_tensors_and_lists_of_prompts_give_the_same(toy):
    options = {"seed": 0, "max_new_tokens": 5}
    expected = toy.generate([[1, 2], [3, 4]], **options)
    assert toy.generate(torch.tensor([[1, 2], [3, 4]]), **options) == expected
    assert toy.generate([torch.tensor([1, 2]), torch.tensor([3, 4])], **options) == expected


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"window": 3, "num_kv_heads": 2, "rope_interleaved": True}, {"qk_norm": True}])
def test_greedy_with_a_cache_is_greedy_without_one_for_every_prompt_of_a_ragged_batch(dtype, options):
    config = ModelConfig(11, d_model=32, num_layers=2, num_heads=4, max_seq_len=24, **options)
    model = TransformerLM(config, dtype=dtype).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight.data, std=0.7)  # fresh weights would say one token for ever
    replies = model.generate(RAGGED, max_new_tokens=20, temperature=0)
    for prompt, reply in zip(RAGGED, replies, strict=True):
        tokens = list(prompt)
        for _ in range(20):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        assert reply == tokens[len(prompt) :]
    assert len({token for reply in replies for token in reply}) > 3


def test_prompts_are_padded_on_the_right_and_then_one_token_a_row_follows(toy):
    steps = list(toy.stream([[1, 2, 3], [4]], max_new_tokens=3, seed=0))
    (first, segments), *later = toy.calls
    assert first.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert segments.tolist() == [[0, 0, 0], [0, -1, -1]]
    assert [(ids.tolist(), segments) for ids, segments in later] == [([[a], [b]], None) for a, b in steps[:-1]]


def test_prompts_of_one_length_need_no_segments(toy):
    toy.generate([[1, 2], [3, 4]], max_new_tokens=1)
    assert [segments for _, segments in toy.calls] == [None]


def test_an_ended_prompt_gives_none_and_feeds_its_last_token_again(scripted):
    model = scripted([[1, 2, 7, 5, 6], [1, 2, 3, 4, 7]], vocab_size=8)
    steps = list(model.stream([[1], [1]], max_new_tokens=5, temperature=0, eos_token_id=7))
    assert steps == [[1, 1], [2, 2], [7, 3], [None, 4], [None, 7]]
    assert [ids.tolist() for ids, _ in model.calls[3:]] == [[[7], [3]], [[7], [4]]]


def test_the_loop_ends_when_all_prompts_have_ended(scripted):
    model = scripted([[1, 7], [7]], vocab_size=8)
    assert model.generate([[1], [1]], max_new_tokens=50, temperature=0, eos_token_id=(6, 7)) == [[1, 7], [7]]
    assert len(model.calls) == 2


def test_a_stop_sequence_ends_a_reply_across_steps_and_is_part_of_it(scripted):
    model = scripted([[4, 5, 4, 5, 6, 1], [5, 6, 1, 1, 1, 1]], vocab_size=8)
    replies = model.generate([[1], [4]], max_new_tokens=6, temperature=0, stop=[[4, 5, 6], [3]])
    assert replies == [[4, 5, 4, 5, 6], [5, 6, 1, 1, 1, 1]]  # the 4 of the second prompt is not a new token


def test_no_new_tokens_are_empty_replies_without_a_call(toy):
    assert toy.generate(RAGGED, max_new_tokens=0) == [[], [], []]
    assert toy.calls == toy.caches == []


def test_no_prompts_are_no_replies(toy):
    assert toy.generate([]) == []
    assert list(toy.stream([])) == []


def test_the_cache_is_made_for_the_batch_and_with_just_enough_room(toy):
    toy.generate(RAGGED, max_new_tokens=10, temperature=0)
    assert toy.caches == [(3, 5 + 10 - 1)]


def test_a_cache_of_the_caller_is_used_and_filled(toy):
    cache = [[9, 9]]
    (reply,) = toy.generate([[1]], cache=cache, max_new_tokens=4, temperature=0)
    assert reply == argmax_loop(toy, [9, 9, 1], 4)
    assert cache == [[9, 9, 1, *reply[:-1]]]
    assert toy.caches == []


@pytest.mark.parametrize(
    ("prompts", "options", "error"),
    [
        ([[11]], {}, RangeError),
        ([[1] * 60], {"max_new_tokens": 6}, RangeError),
        ([[]], {}, ConfigError),
        ([[1]], {"temperature": -1}, ConfigError),
        ([[1]], {"min_p": 2}, ConfigError),
        ([[1]], {"repetition_penalty": 0}, ConfigError),
        ([[1]], {"seed": [1, 2]}, ConfigError),
        ([[1]], {"stop": [[]]}, ConfigError),
    ],
)
def test_bad_arguments_raise_at_the_call_before_the_first_step(toy, prompts, options, error):
    with pytest.raises(error):
        toy.stream(prompts, **{"max_new_tokens": 5, **options})
    assert toy.calls == []


def test_a_full_context_can_be_used_to_the_last_place(toy):
    assert len(toy.generate([[1] * 60], max_new_tokens=5)[0]) == 5


@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_in_the_logits_raises_and_never_gives_a_token(toy, temperature):
    def broken(token_ids, *, segment_ids, cache):
        logits = toy.next_logits(token_ids, segment_ids=segment_ids, cache=cache)
        return logits * (torch.nan if len(toy.calls) == 3 else 1)

    steps = decoding.stream(
        broken, toy.make_cache, [[1]], vocab_size=11, max_seq_len=64, max_new_tokens=5, temperature=temperature
    )
    next(steps)
    next(steps)
    with pytest.raises(PrenormError, match="no token can be chosen after 2 new ones: the logits contain NaN"):
        next(steps)


def test_nan_after_a_reply_has_ended_disturbs_nobody(scripted):
    model = scripted([[7], [1, 2, 3]], vocab_size=8)

    def broken(token_ids, *, segment_ids, cache):
        logits = model.next_logits(token_ids, segment_ids=segment_ids, cache=cache)
        logits[0] = torch.nan if len(model.calls) > 1 else logits[0]
        return logits

    options = {"vocab_size": 8, "max_seq_len": 9, "max_new_tokens": 3, "temperature": 0, "eos_token_id": 7}
    assert decoding.generate(broken, model.make_cache, [[1], [1]], **options) == [[7], [1, 2, 3]]


def test_steps_run_in_inference_mode_which_never_leaks_to_the_consumer(toy):
    modes = []

    def watched(token_ids, *, segment_ids, cache):
        modes.append(torch.is_inference_mode_enabled())
        return toy.next_logits(token_ids, segment_ids=segment_ids, cache=cache)

    for _ in decoding.stream(watched, toy.make_cache, [[1]], vocab_size=11, max_seq_len=64, max_new_tokens=3):
        assert not torch.is_inference_mode_enabled()
        assert torch.ones(1, requires_grad=True).mul(2).requires_grad
    assert modes == [True, True, True]


def test_a_stream_can_be_cancelled(toy):
    steps = toy.stream([[1]], max_new_tokens=9)
    next(steps)
    steps.close()
    assert list(steps) == []
    assert len(toy.calls) == 1
    assert not torch.is_inference_mode_enabled()


WAYS = {
    "greedy": {"temperature": 0},
    "drawn": {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "penalised": {"repetition_penalty": 1.3, "logprobs": True},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_step_fetches_one_tensor_and_sends_one_only_where_a_reply_has_just_ended(options, monkeypatch, make_toy):
    traffic, toy = Traffic(), make_toy()
    monkeypatch.setattr(make_toy, "all_logits", traffic.unheard(make_toy.all_logits))
    steps = toy.stream([[1], [2, 3], [4]], max_new_tokens=20, eos_token_id=(7, 8), seed=2, **options)
    found = per_step(steps, traffic)
    assert [fetches for _, fetches, _ in found] == [["tolist"]] * len(found)
    live = [[token is not None for token in (step[0] if "logprobs" in options else step)] for step, _, _ in found]
    _, *sends = [len(sends) for _, _, sends in found]
    changed = [before != after for before, after in itertools.pairwise(live)]
    assert sends == changed  # what ended in the step before is known by now
    assert 0 < sum(changed) < 4 < len(found)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.usefixtures("as_on_a_gpu", "shapes_unchecked")
def test_with_a_language_model_too_a_step_fetches_one_tensor_and_sends_none(options, window):
    model, traffic = TransformerLM(ModelConfig(11, 16, 2, 2, max_seq_len=30, window=window)).eval(), Traffic()
    _, *later = per_step(model.stream(RAGGED, max_new_tokens=20, **options), traffic)
    assert [(fetches, sends) for _, fetches, sends in later] == [(["tolist"], [])] * 19


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.usefixtures("as_on_a_gpu", "shapes_unchecked")
def test_with_an_encoder_decoder_too_a_step_fetches_one_tensor_and_sends_none(positions):
    config = EncoderDecoderConfig(vocab_size=11, d_model=16, num_layers=2, num_heads=2, positions=positions)
    model, traffic = EncoderDecoder(config).eval(), Traffic()
    _, *later = per_step(model.stream(RAGGED, [[1], [2, 3], [4]], max_new_tokens=9, logprobs=True), traffic)
    assert [(fetches, sends) for _, fetches, sends in later] == [(["tolist"], [])] * 8
