"""The head of both models: whatever stands in its place is called, in forward, loss and decoding alike."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from prenorm import EncoderDecoder, EncoderDecoderConfig, Linear, ModelConfig, TransformerLM
from prenorm.functional import cross_entropy

from ..oracle.inputs import integers, randomise
from ..oracle.tolerance import array, assert_exact

VOCAB, D_MODEL = 11, 8


class Adapted(nn.Module):
    """A head with a low-rank addition, as fine-tuning puts around it."""

    def __init__(self, head):
        super().__init__()
        self.base = head
        self.down, self.up = nn.Linear(D_MODEL, 2, bias=False), nn.Linear(2, VOCAB, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Doubled(Linear):
    """A head of a class that adds to ours."""

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
