import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from prenorm.checks.report.text import clean, print_verdict
from prenorm.checks.verdict import FAILED, Check, Finding, Place, Verdict

from .examples import BAD, GOOD

SOURCE = """\
import torch


class B:
    def forward(self, x):
        f, norm = self.f, self.norm
        x = norm(x + f(x))
        return x
"""


def shown(verdict: Verdict, source: str | None = None, *, width: int = 100, terminal: bool = False) -> str:
    """What is printed."""
    file = io.StringIO()
    colours: Any = "truecolor" if terminal else None
    print_verdict(verdict, Console(file=file, width=width, force_terminal=terminal, color_system=colours), source)
    return file.getvalue()


def test_a_good_block_gets_one_line_that_says_so():
    lines = shown(GOOD).splitlines()
    assert lines[-1] == "no fault found in 1 checks; not applicable: mask"
    assert any(line.split() == ["ok", "values", "as", "they", "should", "be"] for line in lines)
    assert any(line.split() == ["-", "mask", "forward", "takes", "none"] for line in lines)
    assert any(line.split() == ["causal", "no"] for line in lines)


def test_every_finding_says_what_where_and_how_to_mend_it():
    text = shown(BAD)
    block = text[text.index("post_norm") : text.index("eps_ignored")]
    assert "the norms stand on the <residual> path" in block
    assert "b/layers.py:7" in block
    assert "x = norm(x + f(x))" in block
    assert "x + f(norm(x))" in block
    assert text.splitlines()[-1] == "2 faults found: post_norm, eps_ignored"


def test_a_finding_without_a_place_has_none():
    text = shown(BAD)
    assert "likely at" not in text[text.index("eps_ignored") :]


def test_the_lines_beside_the_place_are_shown_where_the_source_is_given():
    assert "self.f, self.norm" in shown(BAD, SOURCE)
    assert "self.f, self.norm" not in shown(BAD)


def test_another_source_than_the_judged_one_is_not_shown():
    assert "import torch" not in shown(BAD, SOURCE.replace("x = norm(x + f(x))", "import torch"))
    assert "b/layers.py:7" in shown(BAD, "short")


def test_one_fault_is_not_called_faults():
    assert shown(dataclasses.replace(BAD, findings=BAD.findings[:1])).splitlines()[-1] == "1 fault found: post_norm"


def test_confinement_is_told():
    assert "no network" in shown(dataclasses.replace(GOOD, confinement=("no network",)))


HOSTILE = [
    "\x1b[2J\x1b[1;1H",
    "\x1b]8;;http://example.org\x1b\\",
    "\r\x08\x08passed",
    "\x9b31m",
    "\u202ereversed\u2066",
    "\ud800",
    "[bold]no fault found[/bold] [/] [link=x] :smile: [@click=app.bell]x[/]",
    "a\u2028b\x85c\x0bd",
    "é" * 5000,
    "\\[red]",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("terminal", [False, True])
def test_a_learner_s_text_cannot_paint_over_the_report(text, terminal):
    place = Place(file=text, line=1, code=text)
    finding = Finding(id="forward_error", message=text, evidence=text, mend=text, place=place)
    check = Check(name=text, result=FAILED, reason=text)
    verdict = Verdict(subject=text, findings=(finding,), conventions={text: text}, checks=(check,), confinement=(text,))
    printed = shown(verdict, f"{text}\n{text}", terminal=terminal)
    plain = shown(dataclasses.replace(verdict), f"{text}\n{text}")
    for character in "\x08\r\x9b\x85\x0b\u2028\u202e\u2066\ud800":
        assert character not in printed
    assert "\x1b" not in plain
    assert "\x1b[2J" not in printed
    assert "\x1b]" not in printed
    assert printed.rstrip().endswith("1 fault found: forward_error") or terminal
    if text.startswith("[bold]"):
        assert "[bold]no" in plain
        assert ":smile:" in plain
    if terminal:  # the colours are the report's own: only these end in m and none moves the cursor
        assert all(part.split("m", 1)[0].replace(";", "").isdigit() for part in printed.split("\x1b[")[1:])


def test_newlines_stay_only_where_they_belong():
    evidence = "first\nsecond"
    finding = Finding(id="a\nb", message="c\nd", evidence=evidence, mend="e")
    lines = shown(Verdict(subject="s\nt", findings=(finding,))).splitlines()
    assert "prenorm check s" in lines[0]
    assert any(line.startswith("a b  c d") for line in lines)
    assert any(line.strip() == "second" for line in lines)


def test_long_texts_are_cut():
    assert len(clean("x" * 10**6)) < 10_000


def test_a_narrow_terminal_wraps():
    assert all(len(line) <= 40 for line in shown(BAD, SOURCE, width=40).splitlines())


def test_conventions_are_said_in_words():
    held = {"rope_direction": -1, "rope_pairing": None, "biases": [], "qk_norm": True, "rope_theta": 500.0}
    lines = shown(Verdict(subject="s", conventions={**held, "others": ["q", "k"]})).splitlines()
    said = {line[:14].strip(): line[14:].strip() for line in lines if line[:14].strip() and line[14:].strip()}
    assert said["rope direction"] == "by minus the angle"
    assert (said["rope pairing"], said["biases"], said["qk norm"]) == ("none", "none", "yes")
    assert (said["rope theta"], said["others"]) == ("500.0", "q, k")


def test_what_does_not_count_is_not_called_a_choice():
    refused = Finding(id="import_error", message="m", evidence="a download", mend="w", counts=False)
    assert "import_error  m  (does not count as a fault)" in shown(Verdict(subject="s", findings=(refused,)))
