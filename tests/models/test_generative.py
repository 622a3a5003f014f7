"""A replaced part, or a replaced forward, takes effect in forward, loss and decoding alike."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from prenorm import EncoderDecoder, EncoderDecoderConfig, Linear, ModelConfig, TransformerLM
from prenorm.errors import ShapeError
from prenorm.functional import cross_entropy

from ..oracle.inputs import integers, randomise
from ..oracle.tolerance import array, assert_exact

VOCAB, D_MODEL = 11, 8


class Adapted(nn.Module):
    """A head with a low-rank adapter, as in fine-tuning."""

    def __init__(self, head):
        super().__init__()
        self.base = head
        self.down, self.up = nn.Linear(D_MODEL, 2, bias=False), nn.Linear(2, VOCAB, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Doubled(Linear):
    """A subclass of Linear with an addition."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked(head):
    head.register_forward_hook(lambda module, given, y: 2 * y)
    return head


def hooked_before(head):
    head.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    return head


def pruned(head):
    prune.l1_unstructured(head, "weight", amount=0.5)
    return head


def replaced(head):
    forward = head.forward
    head.forward = lambda x: 3 * forward(x)
    return head


HEADS = {
    "with a bias": lambda head: nn.Linear(D_MODEL, VOCAB),
    "ours with a bias": lambda head: Linear(D_MODEL, VOCAB, bias=True),
    "adapted": Adapted,
    "a subclass": lambda head: Doubled(D_MODEL, VOCAB),
    "a hook": hooked,
    "a hook before": hooked_before,
    "pruned": pruned,
    "parametrised": parametrizations.weight_norm,
    "another forward": replaced,
    "ours": lambda head: head,
}


def language_model():
    ids = integers(2, 7, limit=VOCAB)
    return TransformerLM(ModelConfig(VOCAB, D_MODEL, 1, 2, d_ff=6)), (ids,), [[[1, 2]]]


def twins():
    config = EncoderDecoderConfig(VOCAB, D_MODEL, 1, 2, tie_embeddings=False, dropout=0.0)
    return EncoderDecoder(config), (integers(2, 5, limit=VOCAB), integers(2, 7, limit=VOCAB, seed=1)), [[[1, 2]], [[3]]]


@pytest.mark.parametrize("make", [language_model, twins])
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_that_of_the_logits(head, make):
    model, given, _ = make()
    model.lm_head = HEADS[head](model.lm_head)
    randomise(model.double()).train()
    targets = integers(2, 7, limit=VOCAB, seed=2)
    found = []
    for loss in (lambda: model.loss(*given, targets), lambda: cross_entropy(model(*given), targets)):
        model.zero_grad()
        (value := loss()).backward()
        found.append((value, [parameter.grad for parameter in model.parameters()]))
    assert_exact(found[0][0], array(found[1][0]))
    together = [torch.cat([grad.flatten() for grad in grads]) for _, grads in found]  # some are zero but for rounding
    assert_exact(together[0], array(together[1]))


@pytest.mark.parametrize("make", [language_model, twins])
def test_decoding_calls_it_too(make):
    model, given, prompts = make()
    chosen = 7
    model.lm_head.register_forward_hook(lambda module, x, y: nn.functional.one_hot(torch.tensor(chosen), VOCAB) + 0 * y)
    assert model.eval().generate(*prompts, max_new_tokens=3, temperature=0) == [[7, 7, 7]]
    assert (model(*given).argmax(-1) == 7).all()


def low(logits):
    """A model that never chooses ids of 3 and more."""
    logits = logits.clone()
    logits[..., 3:] = -torch.inf
    return logits


class OnlyLow(TransformerLM):
    """A model of another class."""

    def forward(self, *given, **options):
        return low(super().forward(*given, **options))


class LossInForward(TransformerLM):
    """A model whose forward gives the loss, for a wrapper that calls nothing else."""

    def forward(self, token_ids):
        return self.loss(token_ids[:, :-1], token_ids[:, 1:])


class OnlyLowTwins(EncoderDecoder):
    """The same for an encoder-decoder."""

    def forward(self, *given, **options):
        return low(super().forward(*given, **options))


def overridden(model):
    model.__class__ = OnlyLow if isinstance(model, TransformerLM) else OnlyLowTwins
    return model


def hooked_model(model):
    model.register_forward_hook(lambda module, given, logits: low(logits))
    return model


def replaced_forward(model):
    forward = model.forward
    model.forward = lambda *given, **options: low(forward(*given, **options))
    return model


def through_forward(model, *given):
    """Greedy decoding as a loop over `forward`, one prompt at a time."""
    replies = []
    for row in zip(*given, strict=True):
        *source, tokens = ([*ids] for ids in row)
        for _ in range(5):
            logits = model(*(torch.tensor([ids]) for ids in (*source, tokens)))
            tokens.append(int(logits[0, -1].argmax()))
        replies.append(tokens[-5:])
    return replies


@pytest.mark.sampled(4)
@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("make", [language_model, twins])
@pytest.mark.parametrize("change", [overridden, hooked_model, replaced_forward])
def test_forward_counts_in_decoding(change, make, draft):
    model = randomise(make()[0].double()).eval()
    prompts = [[[1, 2, 9], [4], [3, 3]], [[5], [6, 7], [8, 8]]][: 1 if make is language_model else 2]
    plain = through_forward(model, *prompts)
    wanted = through_forward(change(model), *prompts)
    assert wanted != plain
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0}
    if draft and make is language_model:
        options["draft"] = randomise(TransformerLM(ModelConfig(VOCAB, 4, 1, 1)), seed=3).eval()
    assert model.generate(*prompts, **options) == wanted
    steps = list(model.stream(*prompts, **options))
    assert [list(reply) for reply in zip(*steps, strict=True)] == wanted


def cautious(model):
    """Logits that are changed, and nothing that is infinite."""
    model.register_forward_hook(lambda module, given, logits: logits.tanh())
    return model


def later_tokens(model):
    """A hook before the model that changes its token ids."""
    model.register_forward_pre_hook(lambda module, given: (given[0].flip(-1), *given[1:]))
    return model


@pytest.mark.parametrize("make", [language_model, twins])
@pytest.mark.parametrize("change", [overridden, replaced_forward, cautious, later_tokens])
def test_forward_counts_in_the_loss(change, make):
    model, given, _ = make()
    randomise(model.double())
    targets = integers(2, 7, limit=3, seed=2)
    plain = model.loss(*given, targets)
    wanted = cross_entropy(change(model)(*given), targets)
    assert not torch.isclose(wanted, plain)
    assert_exact(model.loss(*given, targets), array(wanted))
    at_padding = torch.tensor([[0] * 5 + [-1] * 2, [0] * 7])
    segments = {"segment_ids" if make is language_model else "target_segment_ids": at_padding}
    wanted = cross_entropy(model(*given, **segments), targets.masked_fill(at_padding < 0, -100))
    assert_exact(model.loss(*given, targets, **segments), array(wanted))


def test_a_forward_may_give_the_loss():
    model, (ids,), _ = language_model()
    wanted = randomise(model.double()).loss(ids[:, :-1], ids[:, 1:])
    model.__class__ = LossInForward
    assert torch.equal(model(ids), wanted)
    with pytest.raises(ShapeError, match=r"targets \(2, 6\), but it gives \(\)"):
        model.loss(ids[:, :-1], ids[:, 1:])


class MeanOfTheRow(nn.Module):
    """A head that looks at the whole sequence."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head(x) + x.mean(-2, keepdim=True).sum(-1, keepdim=True) * torch.arange(VOCAB)


class CalledTwice(Linear):
    """A linear layer with a call of its own."""

    def __call__(self, x):
        return 2 * super().__call__(x)


@pytest.mark.parametrize("head", [MeanOfTheRow, lambda head: CalledTwice(D_MODEL, VOCAB)])
def test_the_loss_calls_an_unknown_head_as_forward_does(head):
    model, (ids,), _ = language_model()
    model.lm_head = head(model.lm_head)
    randomise(model.double())
    assert_exact(model.loss(ids, ids), array(cross_entropy(model(ids), ids)))


def test_a_hook_on_all_modules_reaches_the_head_in_the_loss():
    model, (ids,), _ = language_model()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, given, y: 2 * y if module is model.lm_head else None
    )
    try:
        assert_exact(randomise(model.double()).loss(ids, ids), array(cross_entropy(model(ids), ids)))
    finally:
        hook.remove()


def test_hooks_on_all_modules_count_in_decoding():
    model = randomise(language_model()[0]).eval()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, given, y: low(y) if isinstance(module, TransformerLM) else None
    )
    try:
        wanted = through_forward(model, [[1, 2]])
        assert model.generate([[1, 2]], max_new_tokens=5, temperature=0) == wanted
        assert max(wanted[0]) < 3
    finally:
        hook.remove()


class LowRank(nn.Module):
    """A layer with a low-rank adapter, and without the attributes of Linear."""

    def __init__(self, base):
        super().__init__()
        self.inner = base
        self.down = nn.Linear(D_MODEL, 2, bias=False)
        self.up = nn.Linear(2, D_MODEL, bias=False)

    def forward(self, x):
        return self.inner(x) + self.up(self.down(x))


class Scaled(nn.Module):
    """A wrapper around any part that scales its output."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *given, **options):
        return 0.5 * self.part(*given, **options)


PARTS = {
    "k_proj": ("layers.0.attn.k_proj", LowRank),
    "k_proj of PyTorch": ("layers.0.attn.k_proj", lambda part: nn.Linear(D_MODEL, D_MODEL)),
    "v_proj": ("layers.0.attn.v_proj", Scaled),
    "o_proj": ("layers.0.attn.o_proj", LowRank),
    "embedding": ("embedding", Scaled),
    "embedding of PyTorch": ("embedding", lambda part: nn.Embedding(VOCAB, D_MODEL)),
    "norm": ("layers.0.norm2", Scaled),
    "norm of PyTorch": ("final_norm", lambda part: nn.LayerNorm(D_MODEL)),
    "feed-forward": ("layers.0.ffn", Scaled),
    "identity": ("layers.0.ffn", lambda part: nn.Identity()),
}


@pytest.mark.parametrize("part", PARTS)
def test_decoding_needs_nothing_of_a_part_that_forward_does_not_need(part):
    model, _, _ = language_model()
    name, change = PARTS[part]
    model.set_submodule(name, change(model.get_submodule(name)))
    randomise(model).eval()
    prompts = [[1, 2, 9], [4]]
    assert model.generate(prompts, max_new_tokens=5, temperature=0) == through_forward(model, prompts)
    ids = integers(2, 6, limit=VOCAB)
    assert_exact(model.double().loss(ids, ids), array(cross_entropy(model(ids), ids)))
