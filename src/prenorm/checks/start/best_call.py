"""Finds the call of a block: of the candidates that run, the one whose mask hides, whose tables rotate, and so on."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from ..probes.case import MAX_SEQ_LEN, Case, raised
from ..subject.child import meanings
from ..subject.learner import TABLES, Built
from ..subject.raised import LearnerError
from ..subject.recipe import Line, Recipe
from . import call_lines, effects
from .refusals import in_block, is_further

TOKENS = 7
MOST_CALLS = 120
FEW = 12  # of those, where the rest would only take time
OTHER_LENGTHS = (MAX_SEQ_LEN, 8, 16)
IN_A_CACHE = re.compile(r"input_pos|cache")
SEQ = r"(T|L|S|time|length|seq\w*|(src|tgt)_?(len|length|seq\w*)|n_?tokens)"
BATCH = r"(B|N|b|n|bsz|bs|batch\w*)"
SEQ_FIRST = re.compile(rf"(?<!,)(?<!, )(?<! x )\b{SEQ}\s*[,x]\s*{BATCH}\b\s*[,x]")
"""What an author writes whose tensors are (seq, batch, d_model)."""
BATCH_FIRST = re.compile(rf"(?<!,)(?<!, )(?<! x )\b{BATCH}\s*[,x]\s*{SEQ}\b\s*[,x]")
MADE_SEQ_FIRST = re.compile(r"-> ?[LTS][NB][DCEH]\b|\bHWxNxC\b|\.flatten\(2\)\.permute\(2, 0, 1\)")
LENGTH_FIRST = re.compile(
    r"\b(T|L|S|\w*len\w*|seq\w*|n_?ctx|n_?tokens)\s*=\s*(\w+\.(shape\[0\]|size\(0\))|len\(\w+\))"
    r"|\((?P<side>len\(\w+\)), ?(?P=side)[,)]"  # the sides of a mask
)
"""The same, said less surely: NLD -> LND, and a length that may be of another tensor."""
MULTIPLIED = re.compile(r"\b1(\.0*)?\s*-\s*(\w+\.)*\w*mask", re.I)
"""What is said of a mask of ones and zeros: 1 - mask."""
SWAPPED, EACH, SUMMED = "swapped(block)", "each(block)", "summed(block)"
AXES = {SWAPPED: "(seq, batch, d_model)", EACH: "(seq, d_model), a sequence at a time"}
NOISE = 1e-6  # of a leak, by rounding


class Calls:
    """The calls of one block.

    build: the line that built it; given: a call that a person gave; text: the learner's source.
    """

    def __init__(self, case: Case, build: Line, built: Built, given: Line | None, text: str) -> None:
        self.case, self.learner = case, case.learner
        self.build, self.built, self.given = build, built, given
        self.text = text
        says_both = BATCH_FIRST.search(text) is not None  # of different parts of the file
        self._says_seq_first = given is None and SEQ_FIRST.search(text) is not None and not says_both
        self._may_be_seq_first = given is None and (
            MADE_SEQ_FIRST.search(text) is not None
            or SEQ_FIRST.search(text) is not None
            or (LENGTH_FIRST.search(text) is not None and not says_both)
        )
        self.furthest: tuple[Recipe, LearnerError] | None = None
        """Of the calls that raise, the one that got furthest: both lines, and the error."""
        self.plainest: tuple[Recipe, LearnerError] | None = None
        """The first call that was tried, without optional arguments, if it raises in the block."""
        self._errors: dict[str, LearnerError] = {}

    def found(self) -> bool:
        """Whether some call runs; the best one is stored in the learner's recipe."""
        lines = list(self._candidates())
        for length in (TOKENS, *OTHER_LENGTHS):
            best, running, lines = self._first(lines, length)
            if best is None:
                continue
            if best.callee == SUMMED:
                self.case.report.conventions["returns"] = "a branch and the residual: their sum is compared"
            if best.callee in AXES:
                self.case.report.conventions["axes"] = AXES[best.callee]
            self.learner.recipe = Recipe(self.build, best)
            if length == TOKENS and (plainer := self._of_some_lengths(best, lines)) is not None:
                self.learner.recipe = Recipe(self.build, plainer)
            elif length == TOKENS:
                best = self._better(best, lines, running)
                best = self._made_causal(best)
                self.learner.recipe = Recipe(self.build, self._without_places(best))
            self._say_what_the_defaults_do(lines[0])
            return True
        return False

    def _say_what_the_defaults_do(self, plainest: Line) -> None:
        """Report, as a convention, that the call without optional arguments raises, if they are passed for that."""
        error, call = self._errors.get(plainest.written()), self.learner.recipe.call
        given, before = ({one.name for one in line.arguments if one.needed} for line in (call, plainest))
        more = given - before
        if self.given is None and error is not None and more:
            said = f"{plainest.written()} raises {raised(error)}; {', '.join(sorted(more))} is passed in every call"
            self.case.report.conventions["without_optional_arguments"] = said

    def _first(self, lines: list[Line], length: int) -> tuple[Line | None, Iterator[Line], list[Line]]:
        """The first call that runs, those after it, and the candidates with the axes that it has."""
        running = self._running(lines if length == TOKENS else lines[:FEW], length)
        best = next(running, None)
        if self._is_seq_first(best):
            lines = [replace(line, callee=SWAPPED) for line in lines]
            running = self._running(lines, length)
            best = next(running, None)
        if best is None and self.given is None:
            alone = [replace(line, callee=EACH) for line in lines[:FEW]]
            furthest, running = self.furthest, self._running(alone, length)
            best = next(running, None)
            if best is not None and next(self._running(lines[:FEW], length, batch=1), None) is None:
                return best, running, alone
            best, self.furthest = None, furthest  # it is meant for batches
        return best, running, lines

    def _is_seq_first(self, best: Line | None) -> bool:
        """Whether the source says so, and the block does not show the opposite."""
        if best is None:
            return self._says_seq_first
        if not (self._says_seq_first or self._may_be_seq_first):
            return False
        meet = effects.sequences_meet(self.case, self.built)
        return meet and (self._says_seq_first or not effects.tokens_meet(self.case, self.built))

    def _candidates(self) -> Iterator[Line]:
        if self.given is None:
            leaves_it = any(meanings.RESIDUAL.search(one["name"]) for one in self.built.forward or ())
            multiplied = MULTIPLIED.search(self.text) is not None
            lines = call_lines.calls(self.learner.made, self.built.forward, multiplied=multiplied)
            for line in lines[:MOST_CALLS]:
                if leaves_it:
                    yield replace(line, callee=SUMMED)
                yield line
            return
        yield self.given
        if "mask" in self.given.uses and "added" not in self.given.uses:
            for form in ("added(mask)", "(~mask)"):
                yield Line("", text=re.sub(r"(?<![\w.])mask\b(?!\s*=[^=])", form, self.given.text or ""))

    def _running(self, lines: Iterable[Line], length: int = TOKENS, batch: int = 2) -> Iterator[Line]:
        x = self.case.x(batch, length, dtype=torch.float32)
        for line in lines:
            self.learner.check_time()
            self.learner.recipe = Recipe(self.build, line)
            try:
                self.built.run(None, x)
            except LearnerError as error:
                self._errors.setdefault(line.written(), error)
                here = self.learner.recipe, error
                if self.furthest is None and in_block(error):
                    self.plainest = here
                if self.furthest is None or is_further(error, self.furthest[1]):
                    self.furthest = here
                continue
            yield line

    def _of_some_lengths(self, best: Line, lines: list[Line]) -> Line | None:
        """The call without optional arguments, if it runs at other lengths.

        Passing them would hide that the block fails at this length. Where None is only used as it is, such as
        table[None], and the block runs at all lengths with positions, it is no default that is meant to run.
        """
        required = {one["name"] for one in self.built.forward or () if one["required"]}
        kept = tuple(one for one in best.arguments if not one.name or one.name in required)
        text = replace(best, arguments=kept).written()
        plainer = next((line for line in lines if line.written() == text), None)
        if self.given is not None or plainer is None or text == best.written():
            return None
        running = [length for length in OTHER_LENGTHS if next(self._running([plainer], length), None)]
        of_the_whole_table = running == [MAX_SEQ_LEN] and not self._handles_none(best)
        if of_the_whole_table and all(next(self._running([best], length), None) for length in OTHER_LENGTHS):
            return None
        return plainer if running else None

    def _handles_none(self, line: Line) -> bool:
        """Whether the source does something else if an argument is None that the line passes."""
        names = "|".join(re.escape(one.name) for one in line.arguments if one.name)
        return re.search(rf"\b({names})\s+(is|or|[!=]=)\b|\bif\s+(not\s+)?({names})\b", self.text) is not None

    def _better(self, best: Line, lines: list[Line], others: Iterator[Line]) -> Line:
        """The best call that runs: its mask hides later tokens, and its tables rotate by distance."""
        masks = "mask" in best.written() and "mask" in best.uses
        tests: list[Callable[[Case, Built], bool]] = [effects.hides_what_comes_later] * masks
        if best.uses & {*TABLES}:
            tests.append(effects.turns_by_distance)
        if tests:
            leaks, same_numbers = [], self.case.generator.get_state()
            for line in itertools.chain([best], others):
                if call_lines.hides_padding_only(line) and line != best:
                    break
                self.learner.recipe = Recipe(self.build, line)
                if all(test(self.case, self.built) for test in tests):
                    return line
                self.case.generator.set_state(same_numbers)
                leaks.append((effects.leak(self.case, self.built) if masks else 0.0, line))
            least = min(leak for leak, _ in leaks)  # a fault may fail every test, and a mask without effect is as good
            return next(line for leak, line in leaks if leak <= least * (1 + NOISE))
        if self.given is not None:
            return best
        counts = effects.order_counts(self.case, self.built)
        turned = self._turned_otherwise(best, lines)
        if not turned or (counts and effects.turns(self.case, self.built)):
            return best
        return self._one_that_rotates(turned, without=counts) or best

    def _one_that_rotates(self, lines: list[Line], *, without: bool) -> Line | None:
        """The first of the calls that pass positions or tables with which the order of tokens counts.

        without: whether it counts without them, by something else, such as heads that are cut out of several tokens.
        """
        for line in self._running(lines):
            if not effects.order_counts(self.case, self.built):
                continue
            if without and not effects.turns(self.case, self.built):
                continue
            if not line.uses & {*TABLES} or effects.turns_by_distance(self.case, self.built):
                handed = next((one.name for one in line.arguments if one.needed and one.uses & self._turning), "")
                self.case.report.conventions["rotates"] = f"only if {handed} is passed, as in every call here"
                return line
        return None

    def _made_causal(self, line: Line) -> Line:
        """Under a causal target, the call with a causal mask in an optional argument, if the block is not causal."""
        optional = [one for one in line.arguments if one.value == "mask" and not one.needed]
        self.learner.recipe = Recipe(self.build, line)
        if not (self.case.target.causal and self.given is None and optional):
            return line
        if not effects.sees_everything(self.case, self.built):
            return line
        masked = [
            replace(
                line, arguments=tuple(replace(a, value=form, needed=True) if a == one else a for a in line.arguments)
            )
            for one in optional
            for form in call_lines.MASKS
        ]
        running = self._running(masked)
        return next((one for one in running if effects.hides_what_comes_later(self.case, self.built)), line)

    def _without_places(self, line: Line) -> Line:
        """The call without optional positions that raise: places in a cache, or rows of tables.

        The tables of this call have the rows of the positions already, and no others.
        """
        for one in line.arguments:
            if one.value != "positions" or one.needed:
                continue
            if line.uses & {*TABLES, "rows"}:
                places, what = 2 * torch.arange(TOKENS), "chooses rows of the tables, which are those of the positions"
            elif IN_A_CACHE.search(one.name):
                places, what = torch.arange(TOKENS), "belongs to a cache"
            else:
                continue
            self.learner.recipe = Recipe(self.build, line)
            try:
                self.built.run(None, self.case.x(2, TOKENS, dtype=torch.float32), positions=places)
            except LearnerError:
                line = replace(line, arguments=tuple(other for other in line.arguments if other != one))
                self.case.report.conventions["positions"] = f"{one.name} {what}, and is not passed"
        return line

    def _turned_otherwise(self, best: Line, lines: list[Line]) -> list[Line]:
        """The lines that pass positions or rotations, and the same as the best one otherwise."""
        turning = self._turning
        others = [[one for one in line.arguments if not one.uses & turning] for line in (best, *lines)]
        passing = [any(one.needed and one.uses & turning for one in line.arguments) for line in lines]
        kept = zip(lines, others[1:], passing, strict=True)
        return [line for line, other, passes in kept if passes and other == others[0] and line != best]

    @property
    def _turning(self) -> frozenset[str]:
        """The names that provide positions."""
        return frozenset({"positions", *TABLES} | {one["name"] for one in self.learner.made["helpers"]})
