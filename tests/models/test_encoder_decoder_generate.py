import functools
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prenorm import ConfigError, EncoderDecoder, EncoderDecoderConfig, PrenormError, RangeError, ShapeError
from prenorm.layers.cache import KVCache

from ..oracle.inputs import seeds

VOCAB, ROOM = 11, 32
SOURCES = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
PROMPTS = [[3], [1, 2, 3, 4], [5, 6]]


@pytest.fixture(scope="module", autouse=True)
def _shapes_unchecked():
    """Whole models decode token by token: with the shape checker of test_encoder_decoder.py it would take minutes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


id_lists = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)


@functools.cache
def writer(dtype=torch.float64, **options):
    """A model that generates varied tokens: with fresh weights it would repeat one."""
    sizes = {"vocab_size": VOCAB, "d_model": 16, "num_layers": 2, "num_heads": 4, "d_ff": 24, "max_seq_len": ROOM}
    model = EncoderDecoder(EncoderDecoderConfig(**{**sizes, "dropout": 0.5, **options}), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.7, generator=generator)
    return model.to(dtype).eval()


def argmax_loop(model, source, prompt, max_new_tokens):
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(model(torch.tensor(source), torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("options", [{}, {"positions": "learned", "tie_embeddings": False}], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_is_the_argmax_of_the_whole_target_so_far(dtype, options):
    model = writer(dtype=dtype, **options)
    replies = model.generate(SOURCES, PROMPTS, max_new_tokens=20, temperature=0)
    assert replies == [argmax_loop(model, *row, 20) for row in zip(SOURCES, PROMPTS, strict=True)]
    assert len({token for reply in replies for token in reply}) > 3
    assert len(set(map(tuple, replies))) == 3


@given(st.lists(st.tuples(id_lists, id_lists), min_size=1, max_size=3), st.sampled_from([0, 0.7]), seeds)
@settings(max_examples=15)
def test_a_ragged_batch_is_its_sources_one_by_one(rows, temperature, seed):
    model, seeds = writer(), [seed + row for row in range(len(rows))]
    options = {"max_new_tokens": 4, "temperature": temperature, "eos_token_id": (2, 3)}
    sources, prompts = map(list, zip(*rows, strict=True))
    together = model.generate(sources, prompts, seed=seeds, **options)
    assert together == [
        model.generate([source], [prompt], seed=[one], **options)[0]
        for source, prompt, one in zip(sources, prompts, seeds, strict=True)
    ]


def test_a_target_begins_with_the_start_token_unless_a_prompt_says_otherwise():
    model, options = writer(start_token_id=4), {"max_new_tokens": 20, "seed": 0}
    expected = model.generate(SOURCES, [[4]] * 3, **options)
    assert model.generate(SOURCES, **options) == expected
    assert all(model.generate(SOURCES, [[other]] * 3, **options) != expected for other in (0, 5))


def test_tensors_and_lists_of_sources_give_the_same():
    model, options = writer(), {"max_new_tokens": 5, "temperature": 0}
    expected = model.generate([[1, 2], [3, 4]], [[5], [6]], **options)
    assert model.generate(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5], [6]]), **options) == expected
    assert model.generate(torch.tensor([1, 2]), torch.tensor([5]), **options) == expected[:1]


def test_a_target_ends_with_an_end_of_text_id_or_a_stop_sequence():
    model, options = writer(), {"max_new_tokens": 12, "temperature": 0}
    replies = model.generate(SOURCES, PROMPTS, **options)

    def cut(reply, end):
        ends = [i + len(end) for i in range(len(reply)) if reply[i : i + len(end)] == end]
        return reply[: ends[0]] if ends else reply

    eos, stop = replies[0][3], replies[1][2:4]
    ended = [cut(reply, [eos]) for reply in replies]
    assert ended != replies
    assert model.generate(SOURCES, PROMPTS, eos_token_id=eos, **options) == ended
    assert model.generate(SOURCES, PROMPTS, stop=[stop], **options) == [cut(reply, stop) for reply in replies]
    model.eos_token_ids = (eos,)
    try:
        assert model.generate(SOURCES, PROMPTS, **options) == ended
        assert model.generate(SOURCES, PROMPTS, eos_token_id=(), **options) == replies
    finally:
        model.eos_token_ids = ()


def test_a_stream_gives_a_token_a_source_a_step_and_can_be_cancelled():
    model = writer()
    replies = model.generate(SOURCES, PROMPTS, max_new_tokens=4, temperature=0)
    steps = model.stream(SOURCES, PROMPTS, max_new_tokens=4, temperature=0)
    first = next(steps)
    assert not torch.is_inference_mode_enabled()
    assert [first, *steps] == [list(step) for step in zip(*replies, strict=True)]
    steps = model.stream(SOURCES, PROMPTS, max_new_tokens=4)
    next(steps)
    steps.close()
    assert list(steps) == []


def test_logprobs_are_those_of_the_plain_forward_pass():
    model = writer()
    options = {"max_new_tokens": 9, "seed": 4, "repetition_penalty": 1.3, "min_p": 0.01}
    replies, logprobs = model.generate(SOURCES, PROMPTS, logprobs=True, **options)
    assert replies == model.generate(SOURCES, PROMPTS, **options)
    steps = list(model.stream(SOURCES, PROMPTS, logprobs=True, **options))
    assert [list(step) for step in zip(*logprobs, strict=True)] == [row for _, row in steps]
    for source, prompt, reply, row in zip(SOURCES, PROMPTS, replies, logprobs, strict=True):
        logits = model(torch.tensor(source), torch.tensor(prompt + reply[:-1]))[len(prompt) - 1 :]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0]
        assert row == pytest.approx(expected.tolist(), abs=1e-9)


def test_the_penalty_is_for_the_tokens_of_the_target():
    model = writer()
    replies = model.generate(SOURCES, PROMPTS, temperature=0, repetition_penalty=2, max_new_tokens=9)
    for source, prompt, reply in zip(SOURCES, PROMPTS, replies, strict=True):
        tokens = list(prompt)
        for _ in range(9):
            logits = model(torch.tensor(source), torch.tensor(tokens))[-1].tolist()
            for token in set(tokens):
                logits[token] *= 0.5 if logits[token] > 0 else 2
            tokens.append(logits.index(max(logits)))
        assert reply == tokens[len(prompt) :]


def test_a_target_can_be_as_long_as_the_model_allows_and_no_longer():
    model = writer()
    (reply,) = model.generate([[1] * ROOM], [[2] * 30], max_new_tokens=3, temperature=0)
    assert reply == argmax_loop(model, [1] * ROOM, [2] * 30, 3)
    with pytest.raises(RangeError, match=r"prompt 0 has 30 tokens, max_new_tokens is 4 .* max_new_tokens=3 would do"):
        model.stream([[1]], [[2] * 30], max_new_tokens=4)


def test_nothing_to_write_and_no_sources_are_empty_replies():
    model = writer()
    assert model.generate([[1], [2]], max_new_tokens=0) == [[], []]
    assert model.generate([], max_new_tokens=3) == []
    assert model.generate([], [], max_new_tokens=3) == []


def test_generating_leaves_the_mode_to_the_caller_dropout_included():
    model = writer()
    calm = model.generate(SOURCES, max_new_tokens=8, temperature=0)
    assert calm == model.generate(SOURCES, max_new_tokens=8, temperature=0)
    model.train()
    torch.manual_seed(0)
    noisy = [model.generate(SOURCES, max_new_tokens=8, temperature=0) for _ in range(5)]
    assert len({str(replies) for replies in noisy}) > 1
    assert model.training
    model.eval()


BAD_SOURCES: dict[str, Any] = {
    "empty": ([[1], []], None, {}, ConfigError, "a source must have at least one token, but source 1 is empty"),
    "empty prompt": ([[1]], [[]], {}, ConfigError, "a prompt must have at least one token, but prompt 0 is empty"),
    "unknown": ([[1], [11]], None, {}, RangeError, "those of source 1 go from 11 to 11 and vocab_size is 11"),
    "unknown prompt": ([[1]], [[7]], {}, RangeError, "those of prompt 0 go from 7 to 7 and vocab_size is 7"),
    "too long": ([[1], [1] * 33], None, {}, RangeError, "a source must have at most max_seq_len = 32 tokens, but one"),
    "too few prompts": (
        [[1], [2]],
        [[1]],
        {},
        ShapeError,
        "one prompt per source, but there are 1 prompts and 2 sources",
    ),
    "text": ("a text", None, {}, ConfigError, "source 0 must be token ids, not the text 'a text'"),
    "one list": ([1, 2], None, {}, ConfigError, r"source 0 must be a sequence of token ids, not 1; put the ids in a"),
    "floats": (torch.ones(2, 3), None, {}, ConfigError, "source 0 must be one row of integers, not a tensor of"),
    "draft": (
        [[1]],
        None,
        {"draft": 1},
        ConfigError,
        "does not support a draft, which would have to read the sources too",
    ),
    "cache": (
        [[1]],
        None,
        {"cache": KVCache([])},
        ConfigError,
        "generate and stream make their own cache; leave cache out",
    ),
}


@pytest.mark.parametrize(
    ("sources", "prompts", "options", "error", "message"), BAD_SOURCES.values(), ids=BAD_SOURCES.keys()
)
def test_bad_sources_and_prompts_are_refused_at_the_call(sources, prompts, options, error, message):
    model = writer(tie_embeddings=False, target_vocab_size=7)
    for call in (model.stream, model.generate):
        with pytest.raises(error, match=message) as refused:
            call(sources, prompts, **{"max_new_tokens": 3, **options})
        assert isinstance(refused.value, PrenormError)


def counted(model, ending):
    """The names of modules with this ending, in the order of their calls from now on."""
    calls = []
    for name, module in model.named_modules():
        if name.endswith(ending):
            module.register_forward_pre_hook(lambda module, x, name=name: calls.append(name))
    return calls


def test_the_encoder_runs_once_and_cross_keys_and_values_are_computed_once():
    model = writer(num_decoder_layers=3)
    once = [f"decoder.layers.{layer}.cross_attn" for layer in range(3)]
    keys, values = counted(model, "cross_attn.k_proj"), counted(model, "cross_attn.v_proj")
    queries, encoder = counted(model, "cross_attn.q_proj"), counted(model, "encoder")
    model.generate([[1, 2], [3]], [[4, 5], [6]], max_new_tokens=5)
    assert keys == [f"{name}.k_proj" for name in once]
    assert values == [f"{name}.v_proj" for name in once]
    assert queries == 5 * [f"{name}.q_proj" for name in once]
    assert encoder == ["encoder"]
