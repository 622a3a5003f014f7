import copy
import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prenorm import ModelConfig, TransformerLM
from prenorm.errors import ConfigError, PrenormError, RangeError
from prenorm.generation.replies import NOTHING
from prenorm.generation.sampling import Sampling, draw, random_streams
from prenorm.generation.speculation import SUBSTREAMS, judge
from prenorm.layers.timeline import Timeline

from .conftest import Histories, HistoryModel
from .traffic import Traffic, per_step

RAGGED = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]

prompt_lists = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=1, max_size=4)

CUTS = {
    "none": {},
    "cut": {"top_k": 4, "top_p": 0.9, "temperature": 1.4},
    "min_p": {"min_p": 0.1, "temperature": 2.0},
    "penalty": {"repetition_penalty": 1.8},
}


class HalfRight(HistoryModel):
    """A draft that equals the model at every other length of the text, and differs in between."""

    def logits(self, history):
        return HistoryModel.logits(self, history) * (1 if len(history) % 2 else -1)


DRAFTS = {"itself": HistoryModel(), "another": HistoryModel(salt=5), "half right": HalfRight()}


@given(
    prompts=prompt_lists,
    draft=st.sampled_from(list(DRAFTS)),
    draft_tokens=st.integers(1, 6),
    max_new_tokens=st.integers(0, 12),
    penalty=st.sampled_from([None, 1.5, 0.7]),
    eos=st.sets(st.integers(0, 10), max_size=2),
    stop=st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=2), max_size=2),
)
@settings(max_examples=100)
def test_greedy_replies_are_those_of_the_model_alone(prompts, draft, draft_tokens, max_new_tokens, penalty, eos, stop):
    options = {"temperature": 0, "repetition_penalty": penalty, "eos_token_id": tuple(eos), "stop": stop}
    options |= {"max_new_tokens": max_new_tokens, "logprobs": True}
    alone = HistoryModel().generate(prompts, **options)
    assert HistoryModel().generate(prompts, draft=DRAFTS[draft], draft_tokens=draft_tokens, **options) == alone


@given(
    prompts=prompt_lists,
    draft=st.sampled_from(list(DRAFTS)),
    cuts=st.sampled_from(list(CUTS)),
    draft_tokens=st.integers(1, 5),
    max_new_tokens=st.integers(1, 9),
    eos=st.sets(st.integers(0, 10), max_size=2),
)
@settings(max_examples=60)
def test_a_ragged_batch_is_its_prompts_one_by_one(prompts, draft, cuts, draft_tokens, max_new_tokens, eos):
    options = {"draft": DRAFTS[draft], "draft_tokens": draft_tokens, "max_new_tokens": max_new_tokens}
    options |= {"eos_token_id": tuple(eos), "logprobs": True, **CUTS[cuts]}
    seeds = list(range(len(prompts)))
    together = HistoryModel().generate(prompts, seed=seeds, **options)
    alone = [
        HistoryModel().generate([prompt], seed=[seed], **options) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together == ([tokens for (tokens,), _ in alone], [logprobs for _, (logprobs,) in alone])


@given(prompts=prompt_lists, cuts=st.sampled_from(list(CUTS)), draft_tokens=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_draft_that_is_the_model_gives_the_tokens_that_come_without_one(prompts, cuts, draft_tokens, seed):
    options = {"max_new_tokens": 11, "seed": seed, "eos_token_id": 3, **CUTS[cuts]}
    alone = HistoryModel().generate(prompts, **options)
    assert HistoryModel().generate(prompts, draft=HistoryModel(), draft_tokens=draft_tokens, **options) == alone


def chi_square(counts, probabilities):
    """The chi-squared statistic of counts, and its degrees of freedom; rare outcomes are pooled."""
    expected = counts.sum() * probabilities
    rare = expected < 5
    assert counts[expected == 0].sum() == 0
    if rare.any():
        counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
        expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
        counts, expected = counts[expected > 0], expected[expected > 0]
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


def largest_chi_square(degrees):
    """Its 99.9 % quantile, by Wilson and Hilferty 1931."""
    return degrees * (1 - 2 / (9 * degrees) + 3.0902 * (2 / (9 * degrees)) ** 0.5) ** 3


def distribution(model, sampling, history):
    """The probabilities of the token after `history` in float64, computed independently."""
    logits = model.logits(history).double()
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[history] = True
    if sampling.repetition_penalty:
        changed = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, changed, logits)
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits[logits < logits.topk(sampling.top_k).values[-1]] = -torch.inf
    probabilities = logits.softmax(-1)
    if sampling.top_p:
        values, order = probabilities.sort(descending=True)
        probabilities[order[values.cumsum(-1) - values >= sampling.top_p]] = 0
    if sampling.min_p:
        probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


ROWS = 6000


@pytest.mark.sampled(4)
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(("draft", "draft_tokens"), [("another", 1), ("another", 3), ("half right", 4)])
def test_sampled_replies_have_the_distribution_of_the_model_alone(cuts, draft, draft_tokens):
    """The joint distribution of the second to fourth token: the first one is drawn without a draft."""
    model, sampling = HistoryModel(vocab_size=5), Sampling(**CUTS[cuts])
    draft = type(DRAFTS[draft])(salt=DRAFTS[draft].salt, vocab_size=5)
    replies = torch.tensor(  # one batch
        model.generate([[1, 2]] * ROWS, draft=draft, draft_tokens=draft_tokens, max_new_tokens=4, seed=1, **CUTS[cuts])
    )
    joint = torch.ones(1, dtype=torch.float64)
    for place in range(4):
        histories = [[1, 2, *reply] for reply in itertools.product(range(5), repeat=place)]
        after = torch.stack([distribution(model, sampling, history) for history in histories])
        joint = (joint[:, None] * after).flatten()
        codes = replies[:, : place + 1] @ (5 ** torch.arange(place, -1, -1))
        found, degrees = chi_square(codes.bincount(minlength=len(joint)).double(), joint)
        assert found < largest_chi_square(degrees), f"place {place}"
    # The draft was not simply always right: a row would then need two calls.
    assert len(model.calls) > 2


VOCAB, MANY = 6, 40_000


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("keep_model", "keep_draft"), [(VOCAB, VOCAB), (3, VOCAB), (VOCAB, 2), (2, 3)])
def test_judged_tokens_have_the_distribution_of_the_model(keep_model, keep_draft):
    """With two drafted tokens, the first, and the second after an accepted first, are distributed as p."""
    generator = torch.Generator().manual_seed(keep_model * 10 + keep_draft)
    logits = 2 * torch.randn(2, 3, VOCAB, generator=generator)
    logits[1] = (logits[0] + logits[1]) / 2  # half right, so that the last place is reached often
    p = Sampling(top_k=keep_model).fixed_point_probs(logits[0])
    q = Sampling(top_k=keep_draft).fixed_point_probs(logits[1])
    q[-1] = 0
    uniforms = torch.stack([random_streams(3, MANY, 3, substream=i).T for i in range(SUBSTREAMS)])
    # The same three places for all rows: what stands at the second does not depend on the first.
    p, q = p.expand(MANY, -1, -1), q.expand(MANY, -1, -1)
    tokens, accepted = judge(p, q, draw(q, uniforms[0]), torch.full((MANY,), 2), uniforms)
    p, q = p[0], q[0]
    p, q = (shares / shares.sum(-1, keepdim=True).clamp(min=1) for shares in (p, q))
    for place in range(3):
        reached = accepted >= place
        assert reached.sum() > 1000
        found, degrees = chi_square(tokens[reached, place].bincount(minlength=VOCAB).double(), p[place])
        assert found < largest_chi_square(degrees), f"place {place}"
    shared = torch.minimum(p[0], q[0]).sum()  # how often a token is accepted: Leviathan et al., corollary 3.6
    assert abs((accepted > 0).double().mean() - shared) < 4 * (shared * (1 - shared) / MANY) ** 0.5


def test_a_token_rejected_by_rounding_alone_gives_way_to_one_of_the_model():
    """p < q at token 0 by one rounding, and p - q is below one unit everywhere."""
    model, draft = [[2**51 - 1, 2**51]], [[2**51, 2**51]]
    shares = [torch.tensor([[*rows, [0, 0]]]) for rows in (model, draft)]
    uniforms = torch.full((SUBSTREAMS, 1, 2), 1 - 2.0**-53, dtype=torch.float64)
    tokens, accepted = judge(*shares, torch.tensor([[0, NOTHING]]), torch.tensor([1]), uniforms)
    assert (tokens.tolist(), accepted.tolist()) == ([[1, NOTHING]], [0])


def test_a_round_takes_as_many_tokens_as_the_model_agrees_with_and_one_more():
    model, draft = HistoryModel(), HistoryModel()
    model.generate([[1]], draft=draft, draft_tokens=4, max_new_tokens=11, temperature=0)
    assert [ids.shape[1] for ids, _ in model.calls] == [1, 5, 5]  # 1 + 5 + 5 tokens
    model, draft = HistoryModel(), Contrary()
    model.generate([[1]], draft=draft, draft_tokens=4, max_new_tokens=8, temperature=0)
    assert [ids.shape[1] for ids, _ in model.calls] == [1, 5, 5, 5, 4, 3, 2, 1]  # one token each, and never too far


class Contrary(HistoryModel):
    def logits(self, history):
        return -HistoryModel.logits(self, history)


@given(
    prompts=prompt_lists,
    make_draft=st.sampled_from([HistoryModel, HalfRight, Contrary]),
    draft_tokens=st.integers(1, 6),
    max_new_tokens=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_no_cache_ever_needs_more_room_than_without_a_draft(prompts, make_draft, draft_tokens, max_new_tokens, seed):
    room = max(map(len, prompts)) + max_new_tokens - 1
    model, draft = HistoryModel(), make_draft()
    options = {"draft_tokens": draft_tokens, "max_new_tokens": max_new_tokens, "seed": seed}
    model.generate(prompts, draft=draft, **options)  # the caches of these models see to it themselves
    assert model.caches == draft.caches == [(len(prompts), room)]


def test_rows_that_have_ended_are_padded_and_never_fed():
    model, draft = HistoryModel(), HistoryModel()
    options = {"temperature": 0, "stop": model.generate([[6]], max_new_tokens=2, temperature=0), "max_new_tokens": 12}
    expected = model.generate(RAGGED, **options)
    assert len(expected[1]) == 2 < min(len(expected[0]), len(expected[2])) - 5
    model.calls.clear()
    assert model.generate(RAGGED, draft=draft, **options) == expected
    later = model.calls[2:] + draft.calls[5:]  # the prompts, and a round in which the second row ended
    assert len(later) > 4
    assert all((segments[1] < 0).all() for _, segments in later)


def test_a_step_gives_a_token_to_every_row_that_has_not_ended():
    draft = HalfRight()
    replies = HistoryModel().generate(RAGGED, draft=draft, max_new_tokens=10, seed=3, eos_token_id=(2, 9))
    steps = list(HistoryModel().stream(RAGGED, draft=draft, max_new_tokens=10, seed=3, eos_token_id=(2, 9)))
    assert steps == [list(step) for step in itertools.zip_longest(*replies)]
    assert len(set(map(len, replies))) > 1


def test_a_row_that_is_ahead_waits_for_the_others_and_computes_no_more_when_it_has_ended():
    class Uneven(HistoryModel):
        """Right after the texts of the first row, wrong after all others."""

        def logits(self, history):
            return HistoryModel.logits(self, history) * (1 if history[0] == 1 else -1)

    model = HistoryModel()
    steps = model.stream([[1], [2]], draft=Uneven(), draft_tokens=3, max_new_tokens=9, temperature=0)
    expected = HistoryModel().generate([[1], [2]], max_new_tokens=9, temperature=0)
    given_so_far = [next(steps), next(steps)]
    assert given_so_far == [list(step) for step in zip(*(reply[:2] for reply in expected), strict=True)]
    assert len(model.calls) == 2  # the first row has three more tokens waiting
    assert given_so_far + list(steps) == [list(step) for step in zip(*expected, strict=True)]
    fed = [[0, 0] if segments is None else (segments < 0).sum(-1).tolist() for _, segments in model.calls]
    assert fed[:3] == [[0, 0], [0, 0], [0, 0]]  # 1 + 4 + 4 tokens: the first row has ended
    assert all(padding[0] == ids.shape[1] for padding, (ids, _) in zip(fed[3:], model.calls[3:], strict=True))


def test_logprobs_are_the_models_own_whatever_the_draft_and_the_cuts():
    model = HistoryModel()
    options = {"seed": 3, "top_k": 3, "repetition_penalty": 1.4, "temperature": 0.7, "max_new_tokens": 9}
    replies, logprobs = model.generate(RAGGED, draft=HalfRight(), logprobs=True, **options)
    for prompt, reply, given_logprobs in zip(RAGGED, replies, logprobs, strict=True):
        histories = [prompt + reply[:place] for place in range(len(reply))]
        expected = [
            float(model.logits(one).log_softmax(-1)[token]) for one, token in zip(histories, reply, strict=True)
        ]
        assert given_logprobs == pytest.approx(expected, abs=1e-6)


def test_penalised_draft_and_model_see_the_same_tokens():
    """A draft equal to the model is always right only if the same penalty applies at every position."""
    model = HistoryModel()
    model.generate([[1, 2, 3]] * 20, draft=HistoryModel(), repetition_penalty=3.0, max_new_tokens=11, seed=0)
    assert [ids.shape[1] for ids, _ in model.calls] == [3, 5, 5]


def test_with_nothing_to_decode_no_model_is_called():
    model, draft = HistoryModel(), HistoryModel()
    assert model.generate(RAGGED, draft=draft, max_new_tokens=0) == [[], [], []]
    assert model.generate([], draft=draft) == []
    assert [*model.calls, *draft.calls, *model.caches, *draft.caches] == []


@pytest.mark.parametrize("broken", ["model", "draft"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_raises_where_it_would_choose_and_says_whose_it_is(broken, temperature):
    class NanAfterFour(HistoryModel):
        def logits(self, history):
            return HistoryModel.logits(self, history) * (torch.nan if len(history) == 4 else 1)

    model = NanAfterFour() if broken == "model" else HistoryModel()
    draft = NanAfterFour() if broken == "draft" else HistoryModel()
    steps = model.stream([[1], [1]], draft=draft, max_new_tokens=9, temperature=temperature, seed=0)
    assert [len(next(steps)) for _ in range(3)] == [2, 2, 2]
    whose = "the draft's logits" if broken == "draft" else "the logits"
    with pytest.raises(PrenormError, match=f"no token can be chosen after 3 new ones: {whose} contain NaN"):
        next(steps)


def test_nan_after_a_reply_has_ended_disturbs_nobody():
    class NanLater(HistoryModel):
        def logits(self, history):
            return HistoryModel.logits(self, history) * (torch.nan if history[0] == 1 and len(history) > 3 else 1)

    end = HistoryModel().generate([[1]], max_new_tokens=3, temperature=0)[0][2]
    options = {"eos_token_id": end, "max_new_tokens": 9, "temperature": 0}
    expected = HistoryModel().generate([[1], [2]], **options)
    assert len(expected[0]) == 3
    for draft in (HistoryModel(), NanLater(), Contrary()):
        assert NanLater().generate([[1], [2]], draft=draft, **options) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"draft": HistoryModel(vocab_size=12)},
            ConfigError,
            "vocab_size, but it has 12 and the model 11; use a smaller model",
        ),
        ({"draft_tokens": 0}, ConfigError, "draft_tokens must be an integer of at least 1, not 0"),
        ({"draft_tokens": 2.0}, ConfigError, "draft_tokens must be an integer of at least 1, not 2.0"),
        (
            {"cache": [[9]]},
            ConfigError,
            "must read everything that the model has read, .*; leave out the cache or the draft",
        ),
        ({"max_new_tokens": 20}, RangeError, "into the draft's max_seq_len, .* max_new_tokens=10 would do"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_draft_that_cannot_serve_is_refused_before_anything_runs(options, error, message):
    model, draft = HistoryModel(), HistoryModel()
    draft.max_seq_len = 10
    for call in (model.stream, model.generate):
        with pytest.raises(error, match=message):
            call([[1]], **{"draft": draft, "max_new_tokens": 3, **options})
    assert model.calls == draft.calls == []


def test_a_stream_can_be_cancelled_and_forgets_its_caches():
    caches = []

    class Watched(HistoryModel):
        def make_cache(self, *args, **options):
            cache = super().make_cache(*args, **options)
            caches.append(weakref.ref(cache))
            return cache

    model = Watched()
    steps: Any = model.stream([[1]], draft=Watched(), max_new_tokens=9)
    next(steps)
    next(steps)
    assert not torch.is_inference_mode_enabled()
    assert torch.ones(1, requires_grad=True).mul(2).requires_grad
    assert [cache() is None for cache in caches] == [False, False]
    steps.close()
    gc.collect()
    assert [cache() is None for cache in caches] == [True, True]
    assert list(steps) == []
    assert len(model.calls) == 2
    assert not torch.is_inference_mode_enabled()


SEEDS = [5, 6, 7]
REPLIES = {"max_new_tokens": 30, "eos_token_id": (4,)}


def a_model(seed=0, dtype=torch.float64, **sizes):
    """A model that generates varied tokens: with fresh weights it would repeat one."""
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "max_seq_len": 40, **sizes}
    generator = torch.Generator().manual_seed(seed)
    model = TransformerLM(ModelConfig(11, **sizes), dtype=dtype).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight.data, std=1.0, generator=generator)
    return model


def nearly(model):
    """A model that often, but not always, agrees with the other."""
    twin = copy.deepcopy(model)
    twin.lm_head.weight.data[::3] *= 0.7
    return twin


MODELS = {"full": {}, "window": {"window": 3, "num_heads": 4, "num_kv_heads": 2}, "long window": {"window": 9}}


@pytest.mark.parametrize("sizes", MODELS)
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_language_model_says_greedily_what_it_says_without_a_draft(sizes):
    model = a_model(**MODELS[sizes])
    alone = model.generate(RAGGED, temperature=0, logprobs=True, **REPLIES)
    assert len({token for reply in alone[0] for token in reply}) > 3
    small = a_model(1, dtype=torch.float32, d_model=8, num_layers=1, window=4)
    for draft in (model, nearly(model), small):
        for draft_tokens in (1, 4, 7):
            options = {"temperature": 0, "draft": draft, "draft_tokens": draft_tokens, "logprobs": True, **REPLIES}
            replies, logprobs = model.generate(RAGGED, **options)
            assert replies == alone[0]
            for row, expected in zip(logprobs, alone[1], strict=True):
                assert row == pytest.approx(expected, abs=1e-9)
            for prompt, reply in zip(RAGGED, alone[0], strict=True):
                assert model.generate([prompt], **options)[0] == [reply]


@pytest.mark.parametrize("sizes", MODELS)
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_language_model_samples_the_same_tokens_in_any_batch(sizes):
    model = a_model(**MODELS[sizes])
    for draft in (model, nearly(model)):
        options = {"draft": draft, "repetition_penalty": 1.2, "min_p": 0.02, **REPLIES}
        together = model.generate(RAGGED, seed=SEEDS, **options)
        alone = [
            model.generate([prompt], seed=[seed], **options)[0] for prompt, seed in zip(RAGGED, SEEDS, strict=True)
        ]
        assert together == alone
        plain = model.generate(RAGGED, seed=SEEDS, repetition_penalty=1.2, min_p=0.02, **REPLIES)
        assert (together == plain) == (draft is model)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_language_model_has_its_own_distribution_with_a_draft():
    model, draft = a_model(), a_model(1, d_model=8, num_layers=1)
    rows = 4000
    replies = torch.tensor(model.generate([[1, 2]] * rows, draft=draft, draft_tokens=2, max_new_tokens=2, seed=0))
    first = model(torch.tensor([[1, 2]]))[0, -1].softmax(-1)
    histories = torch.tensor([[1, 2, token] for token in range(11)])
    joint = (first[:, None] * model(histories)[:, -1].softmax(-1)).flatten().detach()
    found, degrees = chi_square((replies @ torch.tensor([11, 1])).bincount(minlength=121).double(), joint)
    assert found < largest_chi_square(degrees)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_full_context_can_be_used_to_the_last_place():
    model = a_model()
    for draft in (model, a_model(1)):
        (reply,) = model.generate([[1] * 38], draft=draft, max_new_tokens=3, temperature=0)
        assert [reply] == model.generate([[1] * 38], max_new_tokens=3, temperature=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": HistoryModel()}, "a draft must be a TransformerLM, not a HistoryModel"),
        ({"draft_tokens": 3}, "draft_tokens needs a draft; give one, or leave draft_tokens out"),
        ({"draft": TransformerLM(ModelConfig(11, 4, 1, 1), device="meta")}, r"on the model's device, cpu, .* on meta"),
        ({"draft": TransformerLM(ModelConfig(12, 4, 1, 1))}, "vocab_size, but it has 12 and the model 11"),
        ({"draft": TransformerLM(ModelConfig(11, 4, 1, 1)), "draft_tokens": 0}, "draft_tokens must be an integer"),
    ],
)
def test_a_language_model_refuses_what_is_no_draft_for_it(options, message):
    with pytest.raises(ConfigError, match=message):
        a_model().stream([[1]], max_new_tokens=5, **options)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "top_p": 0.9, "logprobs": True}], ids=str)
def test_a_round_fetches_one_tensor_and_sends_one_only_where_a_reply_has_just_ended(options, monkeypatch):
    traffic, model = Traffic(), HistoryModel()
    monkeypatch.setattr(HistoryModel, "all_logits", traffic.unheard(HistoryModel.all_logits))
    monkeypatch.setattr(Histories, "rewind", traffic.unheard(Histories.rewind))
    options = {"draft": HalfRight(), "max_new_tokens": 12, "eos_token_id": 7, "seed": 1, **options}
    _, *later = per_step(model.stream([[1], [2, 3], [4]], **options), traffic)
    assert traffic.fetches == ["tolist"] * len(model.calls)
    assert len(later) > len(model.calls)
    assert 0 < sum(len(sends) for _, _, sends in later) <= 3
    assert all(len(sends) < 2 for _, _, sends in later)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"repetition_penalty": 1.3, "logprobs": True}], ids=str)
@pytest.mark.usefixtures("shapes_unchecked", "as_on_a_gpu")
def test_with_language_models_too_a_round_fetches_one_tensor(options, monkeypatch):
    model, rounds, traffic = a_model(dtype=torch.float32), [], Traffic()
    # Where rows differ and room is short, a cache may have to ask for the length of the longest one.
    monkeypatch.setattr(Timeline, "_longest_after", traffic.unheard(Timeline._longest_after))
    forward, draft = model.forward, nearly(model)
    monkeypatch.setattr(model, "forward", lambda *args, **more: rounds.append(1) or forward(*args, **more))
    steps = model.stream(RAGGED, draft=draft, max_new_tokens=20, seed=0, **options)
    _, *later = per_step(steps, traffic)
    assert traffic.fetches == ["tolist"] * len(rounds)
    assert 5 < len(rounds) < 20
    assert sum(len(sends) for _, _, sends in later) <= 3
