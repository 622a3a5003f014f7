"""The dates example: what it writes, what it holds out, and that it learns."""

import importlib
import json
import random
import sys
from contextlib import nullcontext
from datetime import date
from itertools import islice
from pathlib import Path

import pytest
from matplotlib.image import imread

from prenorm import EncoderDecoder
from prenorm.training.data.split import held_out

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
dates = importlib.import_module("dates")
written_dates = importlib.import_module("written_dates")

WEDNESDAY = date(2026, 3, 4)
SMALL = ["--languages", "de", "--d-model", "64", "--batch-size", "32", "--exam", "50"]


@pytest.fixture(scope="module")
def forms():
    return written_dates.all_forms()


@pytest.mark.parametrize(
    ("locale", "format", "text"),
    [
        ("de_AT", "full", "de_AT: Mittwoch, 4. März 2026"),
        ("en_US", "medium", "en_US: Mar 4, 2026"),
        ("en_US", "short", "en_US: 3/4/2026"),  # not 3/4/26: which century?
        ("en_GB", "short", "en_GB: 04/03/2026"),
        ("ja", "full", "ja: 2026年3月4日水曜日"),
        ("ar_EG", "long", "ar_EG: ٤ مارس ٢٠٢٦"),
        ("hi", "long", "hi: 4 मार्च 2026"),
        ("mr", "long", "mr: ४ मार्च, २०२६"),
        ("th", "long", "th: 4 มีนาคม ค.ศ. 2026"),  # not 2569, the Buddhist year
        ("fa", "long", "fa: ۴ مارس ۲۰۲۶"),  # not 1404, the Persian year
    ],
)
def test_a_date_is_written_as_its_locale_has_it(forms, locale, format, text):
    written = {(form.locale, form.format): form.write(WEDNESDAY) for form in forms[locale.split("_")[0]]}
    assert written[locale, format] == text


def test_every_form_can_be_read(forms):
    every = [form for group in forms.values() for form in group]
    assert len(every) > 4000
    longest = max(len(dates.encode(form.write(date(2026, 9, 23)))) for form in every)
    assert longest <= dates.make_model(64).config.max_seq_len
    for form in every:
        days = {form.write(date(2026, month, 9)).split(": ", 1)[1] for month in range(1, 13)}
        assert len(days) == 12, form
        assert "2026".translate(form.digits()) in form.write(WEDNESDAY), form


def test_the_official_languages_are_some_hundred(forms):
    official = written_dates.official_languages()
    assert {"de", "fr", "ja", "zh"} <= official
    assert 80 < len(official & forms.keys()) < 150


def test_no_day_is_on_both_sides_of_the_split(forms):
    sides = [
        {pair.answer for pair in islice(written_dates.pairs(forms, random.Random(0), held_out_days=side), 500)}
        for side in (False, True)
    ]
    assert not sides[0] & sides[1]
    assert not any(map(held_out, sides[0]))
    assert all(map(held_out, sides[1]))
    assert min(map(len, sides)) > 400  # many days, not a few of them again and again


def test_bytes_are_tokens_and_back():
    text = "ar_EG: ٤ مارس ٢٠٢٦"
    assert dates.decode([dates.START, *dates.encode(text), dates.END]) == text
    assert max(dates.encode(text)) < dates.START < dates.END < 258


def test_a_batch_is_hardly_padded(forms):
    rng = random.Random(0)
    stream = dates.batches(written_dates.pairs(forms, rng, held_out_days=False), rng, 128)
    halves = [half for batch in islice(stream, 16) for half in batch]
    rows = [[len(dates.encode(pair.text)) for pair in half] for half in halves]
    assert [len(row) for row in rows] == [64] * 32
    assert sum(map(sum, rows)) > 0.85 * sum(len(row) * max(row) for row in rows)


def test_german_is_learned(tmp_path, capsys, shapes_unchecked):
    folder = tmp_path / "run"
    assert dates.main([*SMALL, "--out", str(folder), "--steps", "150"]) == 0
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == list(range(1, 151))
    assert metrics[-1]["accuracy"] > 0.25  # it was 0.56, and chance is 1 in 73,049
    assert imread(folder / "accuracy.png").shape == (500, 800, 4)
    assert "50 held-out dates in 1 languages: read right" in capsys.readouterr().out

    question = "de: 24.12.1983"
    assert dates.main(["--out", str(folder), "--try", question]) == 0
    model = EncoderDecoder.from_pretrained(folder)
    assert capsys.readouterr().out == f"{question}    {dates.read(model, [question])[0]}\n"

    assert dates.main([*SMALL, "--out", str(folder)]) == 2  # a result is not overwritten
    assert "is not empty" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_metrics(tmp_path, shapes_unchecked):
    for name in ("first", "second"):
        assert dates.main([*SMALL, "--out", str(tmp_path / name), "--steps", "5", "--seed", "7"]) == 0
    first, second = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize(
    "arguments",
    [["--languages", "tlh"], ["--try", "de: 1.1.2000"], ["--batch-size", "0"], ["--exam", "0"], ["--steps", "many"]],
)
def test_bad_usage_is_explained_and_has_exit_code_2(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) if arguments[0] == "--steps" else nullcontext():
        assert dates.main(["--out", str(tmp_path / "none"), *arguments]) == 2
    assert capsys.readouterr().err
