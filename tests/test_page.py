"""The HTML page: what is in it, and what never is."""

import re
from html.parser import HTMLParser

import pytest

from prenorm.errors import ConfigError
from prenorm.page import Part, Picture, Raw, Section, Table, page, picture

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too' \0 \ud800"


class Reader(HTMLParser):
    """The tags of a page, what they have, and all text outside of the style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.inside:
            self.texts.append(data)


def test_what_was_given_is_shown_and_never_obeyed_whatever_part_it_is_in():
    parts: list[Part] = [HOSTILE, Table((HOSTILE,), [(HOSTILE,)], HOSTILE), Picture(b"png", HOSTILE, caption=HOSTILE)]
    text = page(HOSTILE, [Section(HOSTILE, parts), Section("b", [])], introduction=[HOSTILE])
    text.encode()
    found = Reader(text)
    assert not {"script", "style"} & {tag for tag, _ in found.tags[8:]}
    shown = "".join(found.texts)
    assert shown.count("<script>alert(1)</script>") == 10  # in the title, its heading, the list, and each part
    assert [attrs["alt"] for tag, attrs in found.tags if tag == "img"] == [
        "<script>alert(1)</script> & \"quoted\" 'too' \ufffd ?"
    ]


def test_nothing_is_fetched_and_scripts_run_only_where_a_part_has_them():
    parts: list[Part] = ["See https://arxiv.org/abs/2002.04745.", Picture(b"a", "b", b"c")]
    found = Reader(page("t", [Section("s", parts)]))
    loads = [attrs[name] for _, attrs in found.tags for name in ("src", "srcset") if name in attrs]
    assert loads
    assert all(one.startswith("data:") for one in loads)
    policies = [attrs["content"] for _, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"]
    with_script = page("t", [Section("s", [Raw("<b>bold</b>", scripts=True)])])
    assert "script-src 'unsafe-inline'" in with_script
    assert "<b>bold</b>" in with_script


def test_paragraphs_have_code_and_links_and_a_link_ends_before_the_sentence_does():
    text = page("t", [Section("s", ["Run `a < b` (see https://x.org/a?b=1&c=2). javascript:alert(1)"])])
    assert "<code>a &lt; b</code>" in text
    assert '<a href="https://x.org/a?b=1&amp;c=2">https://x.org/a?b=1&amp;c=2</a>).' in text
    assert 'href="javascript' not in text


def test_cells_are_written_by_their_kind_and_numbers_stand_on_the_right():
    text = page("t", [Section("s", [Table(("name", "value"), [("a", 1234567), ("b", 0.123456), ("c", None)])])])
    cells = re.findall(r"<td( class=\"number\")?>([^<]*)</td>", text)
    assert [cell for _, cell in cells] == ["a", "1,234,567", "b", "0.1235", "c", ""]
    assert [bool(kind) for kind, _ in cells] == [False, True] * 3
    with pytest.raises(ValueError, match="shorter"):
        page("t", [Section("s", [Table(("name", "value"), [("a",)])])])


def test_several_sections_are_listed_and_one_is_not():
    assert "<nav>" not in page("t", [Section("only", [])])
    found = Reader(page("t", [Section("first", []), Section("second", [])]))
    targets = {attrs["href"][1:] for tag, attrs in found.tags if tag == "a"}
    assert targets == {attrs["id"] for tag, attrs in found.tags if tag == "h2"} == {"s0", "s1"}


def test_a_picture_is_drawn_in_light_and_in_dark_and_the_same_every_time():
    drawn = [picture(lambda axes: axes.plot([1, 2]), alt="a line", size=(2.0, 1.0)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].png.startswith(b"\x89PNG")
    assert drawn[0].dark.startswith(b"\x89PNG")
    assert drawn[0].dark != drawn[0].png
    panels = []
    picture(lambda axes: panels.append(axes.shape), alt="two", size=(2.0, 1.0), panels=(1, 2))
    assert panels == [(2,), (2,)]


def test_without_matplotlib_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'prenorm\[plot\]'"):
        picture(print, alt="nothing")
