import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from prenorm.errors import ConfigError, RangeError
from prenorm.generation.text import Completion, TextGenerator

END = "<|endoftext|>"
TEXT = "def naïve(x): return '世界 🙂🏽' + x\n"
any_character = st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")
any_text = st.text(st.sampled_from("ab  é世🙂🏽\n") | any_character, min_size=1, max_size=20)


def byte_level_bpe(vocab_size=257):
    """With 257 tokens every character outside ASCII is spread over two to four."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def llama_like():
    """Spaces are ▁, one stands before every text, what is not in the vocabulary is spelt in bytes."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def whole_pieces(pieces):
    """Every token stands for its own text."""
    tokens = [END, "go", *dict.fromkeys(pieces)]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="go"))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, [tokens.index(piece) for piece in pieces]


BYTES, MERGED, LLAMA = byte_level_bpe(), byte_level_bpe(300), llama_like()


@pytest.fixture(scope="session")
def saying(scripted):
    """A generator whose model generates these tokens, one list per prompt."""

    def build(tokenizer, *scripts, **options):
        return TextGenerator(scripted(scripts, tokenizer.get_vocab_size()), tokenizer, **options)

    return build


@given(prompt=any_text, text=any_text, tokenizer=st.sampled_from([BYTES, MERGED]))
def test_pieces_are_whole_characters_and_make_up_the_text(prompt, text, tokenizer, saying):
    script = tokenizer.encode(text).ids
    pieces = list(saying(tokenizer, script).stream(prompt, max_new_tokens=len(script)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(prompt=any_text, text=any_text)
@example(prompt="a", text=" b  c 世界 d ")
def test_spaces_and_bytes_survive_a_tokenizer_that_strips_the_first_space(prompt, text, saying):
    together = LLAMA.encode(prompt + text, add_special_tokens=False).ids
    script = together[len(LLAMA.encode(prompt, add_special_tokens=False).ids) :]
    pieces = list(saying(LLAMA, script).stream(prompt, max_new_tokens=len(script)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_is_given_with_the_token_that_completes_it(saying):
    script = BYTES.encode("é🙂a").ids
    assert list(saying(BYTES, script).stream("x", max_new_tokens=len(script))) == ["é", "🙂", "a"]


def test_a_character_that_is_never_completed_is_shown_as_the_tokenizer_shows_it(saying):
    script = BYTES.encode("ab🙂").ids[:-1]
    assert list(saying(BYTES, script).stream("x", max_new_tokens=len(script))) == ["a", "b", "\ufffd"]
    (completion,) = saying(BYTES, script).generate(["x"], max_new_tokens=len(script))
    assert completion.text == BYTES.decode(script) == "ab\ufffd"


def test_a_replacement_character_is_text_like_any_other(saying):
    for tokenizer in (BYTES, MERGED, LLAMA):
        for text in ("a\ufffdb", "ab\ufffd", "\ufffd" * 100):
            script = tokenizer.encode(text, add_special_tokens=False).ids
            completions = saying(tokenizer, script).generate(["x"], max_new_tokens=len(script))
            assert completions[0].text.lstrip(" ") == text


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("a\ufffdb\ufffd\ufffdc", "\ufffd\ufffd", "a\ufffdb"),
        ("ab\ufffd", "\ufffd", "ab"),
        ("a\ufffd", "\ufffdb", "a\ufffd"),
        ("世é\n世", "é\n", "世"),
        ("世é", "é", "世"),
    ],
)
def test_stop_strings_may_lie_in_bytes_and_be_replacement_characters(text, stop, shown, saying):
    for tokenizer in (BYTES, LLAMA):
        script = tokenizer.encode(text, add_special_tokens=False).ids
        options = {"stop": stop, "max_new_tokens": len(script)}
        (completion,) = saying(tokenizer, script).generate(["x"], **options)
        assert completion.text.lstrip(" ") == shown
        assert completion.finish_reason == ("stop" if stop in text else "length")
        assert "".join(saying(tokenizer, script).stream("x", **options)) == completion.text


def test_a_stop_string_may_end_in_bytes_that_are_no_character(saying):
    script = [*BYTES.encode("a").ids, BYTES.encode("🙂").ids[0]]
    (completion,) = saying(BYTES, script).generate(["x"], stop="\ufffd", max_new_tokens=2)
    assert (completion.text, completion.finish_reason) == ("a", "stop")


def test_bytes_that_are_no_character_are_shown_as_such_once_others_follow(saying):
    stray = BYTES.encode("🙂").ids[:1]
    script = BYTES.encode("a").ids + stray + BYTES.encode("b").ids
    assert list(saying(BYTES, script).stream("x", max_new_tokens=3)) == ["a", "\ufffdb"]


def test_special_tokens_are_not_shown(saying):
    script = [*BYTES.encode("ab").ids, BYTES.token_to_id(END), *BYTES.encode("c").ids]
    assert "".join(saying(BYTES, script, eos_token_id=()).stream("x", max_new_tokens=4)) == "abc"
    assert "".join(saying(LLAMA, [1, *LLAMA.encode("a").ids]).stream("x", max_new_tokens=4)) == " a"


def test_a_completion_says_why_it_ended(saying):
    end = BYTES.token_to_id(END)
    scripts = [BYTES.encode(text).ids for text in ("one. two", "six", "abcdefgh")]
    scripts[1].append(end)
    completions = saying(BYTES, *scripts).generate(["A", "B", "C"], stop=". ", max_new_tokens=8)
    assert completions == [
        Completion("A", "one", scripts[0][:5], "stop"),
        Completion("B", "six", scripts[1], "eos"),
        Completion("C", "abcdefgh", scripts[2], "length"),
    ]


def test_a_stream_is_the_text_of_the_completion(saying):
    script = BYTES.encode(TEXT).ids
    options = {"max_new_tokens": 30, "stop": ["return ''"]}
    (completion,) = saying(BYTES, script).generate(["x"], **options)
    assert "".join(saying(BYTES, script).stream("x", **options)) == completion.text


def test_the_model_stops_when_every_text_has_reached_its_stop_string(saying):
    generator = saying(BYTES, BYTES.encode("ab!cd").ids, BYTES.encode("abc!d").ids)
    assert [one.text for one in generator.generate(["x", "y"], stop="!", max_new_tokens=100)] == ["ab", "abc"]
    assert len(generator._model.calls) == 4


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        (["a", "EN", "D", "b"], "END", ["a"]),
        (["aE", "N", "x"], "END", ["a", "ENx"]),  # a false start is shown as soon as it is known to be one
        (["a", "E", "N"], "END", ["a", "EN"]),  # and so is what may have been one when nothing follows
        (["aEEN", "Db"], "END", ["aE"]),
        (["a", "aab"], "aab", ["a"]),
        (["xEND"], ["D", "END"], ["x"]),
        (["ENDx"], ["END"], []),
        (["ab", "cd"], ["abcd", "bc"], ["a"]),  # the one that is complete first
    ],
)
def test_a_text_is_cut_before_the_stop_string_wherever_tokens_end(pieces, stop, shown, saying):
    tokenizer, script = whole_pieces(pieces)
    assert "".join(saying(tokenizer, script).stream("go", stop=stop, max_new_tokens=len(script))) == "".join(shown)


@settings(max_examples=100)
@given(
    text=st.text("abc", min_size=1, max_size=12),
    cuts=st.sets(st.integers(1, 11)),
    stop=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
)
def test_what_is_shown_never_holds_a_stop_string_and_does_not_depend_on_tokens(text, cuts, stop, saying):
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    tokenizer, script = whole_pieces([text[a:b] for a, b in itertools.pairwise(edges)])
    shown = "".join(saying(tokenizer, script).stream("go", stop=stop, max_new_tokens=len(script)))
    ends = sorted((text.index(one) + len(one), text.index(one)) for one in stop if one in text)
    assert shown == (text[: ends[0][1]] if ends else text)


def test_a_prompt_is_encoded_as_the_post_processor_says(saying):
    generator = saying(LLAMA, [5], [5])
    generator.generate(["ab", ""], max_new_tokens=1)
    ids, segments = generator._model.calls[0]
    assert ids.tolist() == [LLAMA.encode("ab").ids, [1, 0, 0, 0][: ids.shape[1]]]
    assert segments[1].tolist() == [0] + [-1] * (ids.shape[1] - 1)


def test_an_empty_prompt_starts_from_the_end_of_text_token(saying):
    generator = saying(BYTES, BYTES.encode("a").ids)
    assert list(generator.stream("", max_new_tokens=1)) == ["a"]
    assert generator._model.calls[0][0].tolist() == [[BYTES.token_to_id(END)]]


def test_an_empty_prompt_without_an_end_of_text_token_is_refused(saying):
    with pytest.raises(ConfigError, match="an empty prompt starts from the end-of-text token, but neither"):
        saying(BYTES, [1], eos_token_id=()).stream("")


def test_the_models_own_end_of_text_comes_before_the_tokenizers(scripted):
    model = scripted([BYTES.encode("ab").ids], BYTES.get_vocab_size())
    model.eos_token_ids = (BYTES.token_to_id("b"),)
    (completion,) = TextGenerator(model, BYTES).generate(["x"], max_new_tokens=9)
    assert (completion.finish_reason, len(completion.token_ids)) == ("eos", 2)


def test_max_new_tokens_defaults_to_128_or_the_room_that_is_left(saying):
    generator = saying(BYTES, [5], eos_token_id=())
    assert len(generator.generate(["x"])[0].token_ids) == 128
    generator._model.max_seq_len = 20
    assert len(generator.generate(["xxxxx"])[0].token_ids) == 16
    with pytest.raises(RangeError, match="prompt 0 has 21 tokens and there is room for 20"):
        generator.stream("x" * 21)


def test_no_prompts_are_no_completions(saying):
    assert saying(BYTES).generate([]) == []


def test_errors_come_at_the_call(saying):
    generator = saying(BYTES, [1])
    with pytest.raises(ConfigError, match="temperature must be at least 0"):
        generator.stream("x", temperature=-1)
    with pytest.raises(ConfigError, match="a stop string must be text of at least one character, not ''"):
        generator.stream("x", stop=["end", ""])
    with pytest.raises(ConfigError, match=r"must be a list of texts, not one text; \['x'\] would do"):
        generator.generate("x")
    with pytest.raises(ConfigError, match=r"character 1 of one is the lone surrogate '\\udcff'"):
        generator.stream("x\udcff")


def test_a_stream_can_be_cancelled(saying):
    generator = saying(BYTES, BYTES.encode("abc").ids)
    pieces = generator.stream("x", max_new_tokens=3)
    assert next(pieces) == "a"
    pieces.close()
    assert list(pieces) == []
    assert len(generator._model.calls) == 1


@given(prompt=any_text, text=any_text, draft_tokens=st.integers(1, 6))
def test_with_a_draft_too_pieces_are_whole_characters_and_stop_strings_are_cut(prompt, text, draft_tokens, speaking):
    script = BYTES.encode(text).ids
    generator, draft = speaking(script)
    options = {"draft": draft, "draft_tokens": draft_tokens, "max_new_tokens": len(script), "temperature": 0}
    pieces = list(generator.stream(prompt, **options))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    stop = text[len(text) // 2]
    completions = generator.generate([prompt, prompt + "x"], stop=stop, logprobs=True, **options)
    for completion in completions:
        assert completion.text == text.split(stop)[0]
        assert completion.finish_reason == "stop"
        assert len(completion.logprobs) == len(completion.token_ids)


@pytest.fixture(scope="session")
def speaking(make_toy):
    """A generator whose model generates one text after any prompt, and a draft that is wrong at every third token."""

    class Speaker(make_toy):  # type: ignore[misc, valid-type]  # a class that a fixture gives
        max_seq_len = 400

        def __init__(self, script, wrong):
            super().__init__(vocab_size=BYTES.get_vocab_size())
            self.script, self.wrong = script, wrong

        def make_cache(self, batch_size, max_seq_len, *, rewind=0):
            cache = super().make_cache(batch_size, max_seq_len + 1, rewind=rewind)
            cache.others = 1
            return cache

        def _row(self, history, token_ids, real):
            if not history:
                history.append(sum(real))  # where the reply starts: one place more
            return super()._row(history, token_ids, real)

        def logits(self, history):
            place = len(history) - 1 - history[0]
            token = self.script[place] if 0 <= place < len(self.script) else 0
            if self.wrong and place % 3 == 2:
                token = (token + 1) % self.vocab_size
            return torch.nn.functional.one_hot(torch.tensor(token), self.vocab_size) * 10.0

    return lambda script: (TextGenerator(Speaker(script, False), BYTES), Speaker(script, True))


def test_logprobs_stand_beside_the_tokens_on_request(saying):
    script = BYTES.encode("abc").ids
    (completion,) = saying(BYTES, script).generate(["x"], max_new_tokens=3, logprobs=True)
    assert completion == Completion("x", "abc", script, "length", [0.0, 0.0, 0.0])
    for options in ({}, {"logprobs": False}):
        (completion,) = saying(BYTES, script).generate(["x"], max_new_tokens=3, **options)
        assert completion == Completion("x", "abc", script, "length")
        assert completion.logprobs is None
    (completion,) = saying(BYTES, script).generate(["x"], stop="b", max_new_tokens=3, logprobs=True)
    assert completion == Completion("x", "a", script[:2], "stop", [0.0, 0.0])


def test_a_text_stream_does_not_support_logprobs(saying):
    with pytest.raises(ConfigError, match=r"does not support logprobs; generate\(\[prompt\], logprobs=True\) does"):
        saying(BYTES, [1]).stream("x", logprobs=True)


def test_a_stream_with_a_draft_can_be_cancelled(speaking):
    generator, draft = speaking(BYTES.encode("abcdefghi").ids)
    pieces = generator.stream("x", draft=draft, max_new_tokens=9, temperature=0)
    assert [next(pieces), next(pieces)] == ["a", "b"]
    pieces.close()
    assert list(pieces) == []
    assert len(generator._model.calls) == 2
    assert not torch.is_inference_mode_enabled()
