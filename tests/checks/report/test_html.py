from html.parser import HTMLParser

from prenorm import TransformerBlock
from prenorm.checks.report.html import as_page, as_table
from prenorm.checks.report.result import Result, groups
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
    assert page.count('<td class="problem">problem</td><td>it has no layers.py</td>') == 2


def test_similar_findings_are_grouped_the_most_frequent_first():
    assert groups(RESULTS) == [
        ("eps_ignored", ["<script>alert(1)</script>", "eve"]),
        ("post_norm", ["<script>alert(1)</script>", "eve"]),
        ("problem: it has no layers.py", ["cy", "dee"]),
    ]


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
    assert "no fault found" in as_table(GOOD)
