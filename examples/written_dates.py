"""Dates as people write them: random days in every language, locale and format that the Unicode CLDR has, by Babel."""

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import islice
from typing import Any, NamedTuple

from babel import Locale, localedata
from babel.core import get_global
from babel.dates import format_date, get_date_format
from babel.languages import get_official_languages

from prenorm.training.data.split import held_out

FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
FORMATS: tuple[Any, ...] = ("full", "long", "medium", "short")

# Babel writes 0 to 9. These are the zeros of the other digits that CLDR gives some locales; 1 to 9 follow each of them.
ZEROS = {
    "adlm": "\N{ADLAM DIGIT ZERO}",
    "arab": "\N{ARABIC-INDIC DIGIT ZERO}",
    "arabext": "\N{EXTENDED ARABIC-INDIC DIGIT ZERO}",
    "beng": "\N{BENGALI DIGIT ZERO}",
    "cakm": "\N{CHAKMA DIGIT ZERO}",
    "deva": "\N{DEVANAGARI DIGIT ZERO}",
    "hmnp": "\N{NYIAKENG PUACHUE HMONG DIGIT ZERO}",
    "mtei": "\N{MEETEI MAYEK DIGIT ZERO}",
    "mymr": "\N{MYANMAR DIGIT ZERO}",
    "nkoo": "\N{NKO DIGIT ZERO}",
    "olck": "\N{OL CHIKI DIGIT ZERO}",
    "tibt": "\N{TIBETAN DIGIT ZERO}",
}


class Form(NamedTuple):
    """A way to write dates: the full, long, medium or short format of a locale."""

    locale: str
    format: str
    pattern: str

    def write(self, day: date) -> str:
        """The day in this form, in the locale's own digits, with the locale in front."""
        return f"{self.locale}: {format_date(day, self.pattern, self.locale).translate(self.digits())}"

    def digits(self) -> dict[int, str]:
        """What the locale writes for 0 to 9, as `str.translate` takes it."""
        zero = ord(ZEROS.get(Locale.parse(self.locale).default_numbering_system, "0"))
        return {ord("0") + digit: chr(zero + digit) for digit in range(10)}


class Pair(NamedTuple):
    """A day as someone writes it, and as it shall be read."""

    text: str
    answer: str
    language: str
    form: Form


Forms = dict[str, list[Form]]  # of each language


def all_forms() -> Forms:
    """The forms of all languages. Two digits of a year do not say the century, so there it is the locale's M/d/y."""
    forms: Forms = defaultdict(list)
    for name in sorted(localedata.locale_identifiers()):
        locale = Locale.parse(name)
        for format in FORMATS:
            pattern = get_date_format(format, locale).pattern
            if "yy" in pattern:
                pattern = locale.datetime_skeletons["yMd"].pattern
            if "yy" not in pattern:
                forms[locale.language].append(Form(name, format, pattern))
    return dict(forms)


def official_languages() -> set[str]:
    """The languages in which some state or territory is run, by law or in fact, as the CLDR has it."""
    names = (get_official_languages(territory, de_facto=True) for territory in get_global("territory_languages"))
    return {name.split("_")[0] for group in names for name in group}


def pairs(forms: Forms, rng: random.Random, *, held_out_days: bool) -> Iterator[Pair]:
    """Endless random pairs, of days on one side of the split only.

    In the exam all languages are equally likely. In training those with their own digits come more often: there are few
    of them for each kind of digits, and ten signs to learn instead of none.
    """
    languages = sorted(forms)
    weights = [1 if held_out_days or not _own_digits(forms[language]) else 5 for language in languages]
    while True:
        day = FIRST_DAY + timedelta(rng.randrange((LAST_DAY - FIRST_DAY).days + 1))
        if held_out(day.isoformat()) == held_out_days:
            language = rng.choices(languages, weights)[0]
            form = rng.choice(forms[language])
            yield Pair(form.write(day), day.isoformat(), language, form)


def exam_of(forms: Forms, count: int) -> list[Pair]:
    """Pairs of held-out days, the same in every run."""
    return list(islice(pairs(forms, random.Random(0), held_out_days=True), count))


def _own_digits(forms: list[Form]) -> bool:
    return any(form.digits()[ord("0")] != "0" for form in forms)
