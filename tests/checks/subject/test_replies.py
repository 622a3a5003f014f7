import pytest
import torch
from torch import nn

from prenorm.checks.subject import replies
from prenorm.checks.subject.child.wire import WireError
from prenorm.checks.subject.local import LocalSubject

PARAMETER = {
    "name": "x",
    "kind": "KEYWORD_ONLY",
    "required": True,
    "default": None,
    "annotation": "",
    "settings": False,
}
LOADED = {"name": "Block", "constructor": [PARAMETER], "is_class": True, "helpers": [], "notes": {}}
LOADED |= {"numbers": {"n_embd": "d_model"}}
BUILT = {"block": 0, "parameters": [], "tensors": [], "forward": None, "layers": [], "read": {}, "notes": {}}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.zeros(2))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.linear(x) * scale * torch.ones(4)


def test_every_reply_of_the_driver_has_its_form() -> None:
    subject = LocalSubject()
    assert replies.checked("build", subject.driver.add(Block()))
    assert replies.checked("build", BUILT)
    x = torch.randn(2, 4)
    for more in ({}, {"cotangent": torch.ones(2, 4)}, {"trace": True}, {"inputs": ["no tensor"]}):
        request = {"op": "run", "block": 0, "inputs": [x], **more}
        assert replies.checked("run", subject.ask(request))
    assert replies.checked("run_on_meta", subject.ask({"op": "run_on_meta", "block": 0, "inputs": [x]}))
    assert replies.checked("forget", subject.ask({"op": "forget"})) == {}
    error = subject.ask({"op": "run", "block": 0, "inputs": [x]})
    assert "error" in replies.checked("run", error)


def test_the_replies_to_load_have_their_form() -> None:
    subject = LocalSubject()
    load = {"op": "load", "root": "/", "module": "fractions", "file": None, "name": "Fraction"}
    assert "constructor" in replies.checked("load", subject.ask(load))
    assert "missing" in replies.checked("load", subject.ask({**load, "name": "Nothing"}))
    assert replies.checked("load", LOADED)
    assert "error" in replies.checked("load", subject.ask({**load, "module": "no_such_module"}))


def test_a_subject_of_this_process_answers_in_the_form_that_a_sandbox_must_keep(monkeypatch) -> None:
    subject = LocalSubject(Block)
    assert subject.ask({"op": "load"})["is_class"]
    monkeypatch.setattr(subject.driver, "use", lambda made: {"is_class": True})
    with pytest.raises(WireError, match="another form"):
        subject.ask({"op": "load"})


@pytest.mark.parametrize(
    ("op", "reply"),
    [
        ("run", {}),
        ("run", {"passed": True}),
        ("run", {"y": "0", "x_after": "0", "requires_grad": False}),
        ("run", {"y": torch.ones(1), "x_after": torch.ones(1), "requires_grad": 1}),
        ("run", {"y": torch.ones(1), "x_after": torch.ones(1), "requires_grad": True, "findings": []}),
        ("run", {"y": torch.ones(1), "x_after": torch.ones(1), "requires_grad": True, "gradients": {"w": 1.0}}),
        ("build", BUILT | {"block": True}),
        ("build", BUILT | {"parameters": [{}]}),
        ("build", BUILT | {"tensors": ["a"]}),
        ("load", {"constructor": [{"name": "x"}], "is_class": True}),
        ("load", {"missing": [1]}),
        ("load", LOADED | {"name": "x) or (y"}),  # names become part of lines
        ("load", LOADED | {"constructor": [PARAMETER | {"name": "a=1, b"}]}),
        ("load", LOADED | {"constructor": [PARAMETER] * 501}),
        ("build", BUILT | {"read": {"n_embd": "print(1)"}}),
        ("build", BUILT | {"read": {"model": {"n_embd": "print(1)"}}}),
        ("load", LOADED | {"numbers": {"n_embd": "print(1)"}}),
        ("load", LOADED | {"numbers": {"a=1, b": "d_model"}}),
        ("forget", {"x": 1}),
        ("run", {"error": "text"}),
        ("run", {"error": {"type": "E", "message": "m", "frames": [{"file": 1}]}}),
        ("run", {"error": {"type": "E", "message": "m", "frames": []}, "y": torch.ones(1)}),
    ],
)
def test_any_other_form_is_refused(op: str, reply: dict) -> None:
    with pytest.raises(WireError, match="another form"):
        replies.checked(op, reply)
