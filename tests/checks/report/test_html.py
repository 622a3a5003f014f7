from html.parser import HTMLParser

from prenorm import TransformerBlock
from prenorm.checks.report.html import as_page, as_table
from prenorm.checks.report.result import Result, frequencies, shared_reasons
from prenorm.checks.verdict import Finding, Verdict
from prenorm.testing import check

from .examples import BAD, GOOD


class Balanced(HTMLParser):
    """The tags that are open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


RESULTS = [
    Result(name="ann", verdict=GOOD),
    Result(name="<script>alert(1)</script>", verdict=BAD),
    Result(name="cy", verdict=None, problem="it has no layers.py"),
    Result(name="dee", verdict=None, problem="it has no layers.py"),
    Result(name="eve", verdict=BAD),
]


def test_a_page_has_a_row_a_submission_and_what_stopped_it():
    page = as_page(RESULTS, "blocks")
    parsed = Balanced(page)
    assert parsed.open == []
    assert "script" not in parsed.seen  # what a submission is called is text
    assert page.count("problem</td><td>it has no layers.py</td>") == 2


def test_faults_are_counted_the_most_frequent_first_and_what_stopped_several_is_told():
    assert frequencies(RESULTS) == [
        ("eps_ignored", ["<script>alert(1)</script>", "eve"]),
        ("post_norm", ["<script>alert(1)</script>", "eve"]),
    ]
    assert shared_reasons(RESULTS) == [("it has no layers.py", ["cy", "dee"])]


def test_every_fault_is_counted_whatever_stopped_it():
    def stopped(evidence):
        broken = Finding(id="import_error", message="m", evidence=evidence, mend="w")
        return Verdict(subject="a", findings=(broken,), judged=False)

    results = [Result(name=name, verdict=stopped(f"line {name}")) for name in ("1", "2")]
    assert frequencies(results) == [("import_error", ["1", "2"])]
    assert shared_reasons(results) == []
    page = as_page(results, "blocks", "target cs336; today")
    assert "<tr><td><code>import_error</code></td><td>2</td><td>1, 2</td></tr>" in page
    assert "0 passed, 2 failed, 0 problem" in page
    assert "target cs336; today" in page


def test_a_choice_does_not_look_like_a_fault():
    choice = Finding(id="layer_norm", message="m", evidence="e", mend="RMSNorm", counts=False)
    verdict = Verdict(subject="a", findings=(choice,))
    page = as_page([Result(name="ann", verdict=verdict)], "blocks")
    assert 'no fault <span class="aside">(not counted: layer_norm)</span>' in page
    assert '<td class="aside"><code>layer_norm</code><div class="aside">does not count as a fault</div></td>' in page
    assert "to change it: RMSNorm" in page
    assert "fix:" not in page
    assert '<p class="passed"><b>no fault found in 0 checks</b></p>' in as_table(verdict)


def test_a_notebook_shows_a_report_as_a_table_and_print_as_text():
    class Detached(TransformerBlock):
        def forward(self, x, token_positions=None):  # as others write it
            x = x.detach() + self.attn(self.norm1(x), token_positions)
            return x + self.ffn(self.norm2(x))

    report = check(Detached, seed=1)
    assert not report.passed
    shown = Balanced(report._repr_html_())
    assert shown.open == []
    assert "residual_detached" in report._repr_html_()
    assert "residual_detached" in repr(report)
    assert "called as  block(x)" in repr(report)
    assert '<p class="failed"><b>1 fault found: residual_detached' in report._repr_html_()
    assert "no fault found" in as_table(GOOD)
