"""The start of a judgement: finds the lines that build and call a block, by trying candidates.

It reports as conventions what it finds on the way: the meaning of the mask, and where rotations come from.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NoReturn

import torch

from ..formula.parameters import Sizes
from ..subject.child import meanings
from ..subject.child.missing_packages import NotInstalledError
from ..subject.child.names import UnknownEntryError
from ..subject.learner import TABLES, Built, LearnerError
from ..subject.recipe import Line, Recipe, given
from . import effects, guess
from .case import MAX_SEQ_LEN, Case, raised

TOKENS = 7
TRIED = (
    Sizes(),
    Sizes(d_model=64, num_heads=4, num_kv_heads=4, d_ff=320),
    Sizes(d_model=256, num_heads=4, num_kv_heads=4, d_ff=704),
)
"""The sizes that are tried in order: some constructors insist on multiples of 64."""
MOST_CALLS = 120
FEW = 12  # of those, where the rest would only take time
OTHER_LENGTHS = (MAX_SEQ_LEN, 8, 16)
IN_A_CACHE = re.compile(r"input_pos|cache")
SEQ_FIRST = re.compile(
    r"(?<!,)(?<!, )(?<! x )\b(T|L|S|time|length|seq\w*|(src|tgt)_?(len|length|seq\w*)|n_?tokens)"
    r"\s*[,x]\s*(B|N|b|n|bsz|bs|batch\w*)\b\s*[,x]"
)
"""What an author writes whose tensors are (seq, batch, d_model)."""
SWAPPED, EACH = "swapped(block)", "each(block)"
ONE_SEQUENCE = "too many values to unpack (expected 2"
"""What a block raises that reads two axes, (seq, d_model), from x.shape."""
AXES = {SWAPPED: "(seq, batch, d_model)", EACH: "(seq, d_model), a sequence at a time"}
NOISE = 0.1  # of a leak, from one random input to the next


def start(case: Case, build: str | None = None, call: str | None = None, text: str = "") -> Built:
    """Find both lines, store them in case.learner.recipe, and return a block.

    build, call: lines that a person gave; text: the learner's source.

    Raises LearnerError if the constructor raises, and UnknownArgumentsError if arguments cannot be inferred.
    """
    first: LearnerError | None = None
    for sizes in TRIED:
        case.sizes = sizes
        try:
            return _Start(case, build, call, text).found()
        except LearnerError as error:
            first = first or error
            if error.stage != "constructor":
                break
    assert first is not None
    case.sizes = TRIED[0]
    raise first


def usual_arguments(case: Case) -> None:
    """The arguments of every build, as far as the constructor takes them."""
    usual = {"max_seq_len": MAX_SEQ_LEN, "rope_theta": 10000.0, "eps": 1e-6, "dropout": 0.0}
    case.arguments = {name: value for name, value in usual.items() if case.learner.takes(name)}
    if case.target.causal and case.learner.takes("causal"):  # under other targets the default stays
        case.arguments["causal"] = True


class UnknownArgumentsError(Exception):
    """It cannot be inferred how the block is built or called, which is not a fault."""


class _Start:
    """One search for both lines, with one set of sizes."""

    def __init__(self, case: Case, build: str | None, call: str | None, text: str) -> None:
        self.case, self.learner = case, case.learner
        self.build = None if build is None else given(build, "build")
        self.call = None if call is None else given(call, "call")
        self._says_seq_first = call is None and SEQ_FIRST.search(text) is not None
        self._furthest: tuple[list[int], Recipe, LearnerError | None] = ([-1], self.learner.recipe, None)
        """Of the calls that raise, the one that got furthest."""

    def found(self) -> Built:
        """A block, with both lines in the learner's recipe."""
        errors: list[LearnerError] = []
        built_at_all: Built | None = None
        for line in self._builds():
            try:
                built = self._built(line)
            except LearnerError as error:
                errors.append(error)
                continue
            built_at_all = built_at_all or built
            if self._calls_found(line, built):
                return self._settled(built)
        if built_at_all is None:
            self.learner.recipe = Recipe(next(self._builds()))
            self._give_up(errors[0])
        _, self.learner.recipe, raising = self._furthest
        if self.call is None and raising is not None and not _is_its_own(raising):
            self._give_up_call(raising)
        return self._settled(built_at_all)  # its first call reports the error

    def _builds(self) -> Iterator[Line]:
        if self.build is not None:
            yield self.build
            return
        wants_rope = any(meanings.ROPE.search(one["name"]) for one in self.learner.made["constructor"] or ())
        if wants_rope and not any(one["kind"] != "configuration" for one in self.learner.made["helpers"]):
            self.learner.look_beside()
        yield from itertools.islice(guess.builds(self.learner.made), guess.MOST)
        yield from itertools.islice(guess.builds_of_file(self.learner.made), guess.MOST)

    def _built(self, line: Line) -> Built:
        self.learner.recipe = Recipe(line)
        usual_arguments(self.case)
        return self.case.build()

    def _calls(self, built: Built) -> Iterator[Line]:
        if self.call is None:
            yield from itertools.islice(guess.calls(self.learner.made, built.forward), MOST_CALLS)
            return
        yield self.call
        if "mask" in self.call.uses and "added" not in self.call.uses:
            for form in ("added(mask)", "(~mask)"):
                yield Line("", text=re.sub(r"(?<![\w.])mask\b(?!\s*=[^=])", form, self.call.text or ""))

    def _calls_found(self, build: Line, built: Built) -> bool:
        """Whether some call runs; the best one is stored in the recipe."""
        lines = list(self._calls(built))
        for length in (TOKENS, *OTHER_LENGTHS):
            running = self._running(build, built, lines if length == TOKENS else lines[:FEW], length)
            best = next(running, None)
            if self._says_seq_first and (best is None or effects.sequences_meet(self.case, built)):
                lines = [replace(line, callee=SWAPPED) for line in lines]
                running = self._running(build, built, lines, length)
                best = next(running, None)
            if best is None and self.call is None and self._takes_one_sequence():
                lines = [replace(line, callee=EACH) for line in lines[:FEW]]
                running = self._running(build, built, lines, length)
                best = next(running, None)
            if best is None:
                continue
            if best.callee in AXES:
                self.case.report.conventions["axes"] = AXES[best.callee]
            self.learner.recipe = Recipe(build, best)
            if length == TOKENS and (plainer := self._of_some_lengths(build, built, best, lines)) is not None:
                self.learner.recipe = Recipe(build, plainer)
            elif length == TOKENS:
                best = self._better(build, built, best, lines, running)
                best = self._made_causal(build, built, best)
                self.learner.recipe = Recipe(build, self._without_cache(build, built, best))
            return True
        return False

    def _running(self, build: Line, built: Built, lines: Iterable[Line], length: int = TOKENS) -> Iterator[Line]:
        x = self.case.x(2, length, dtype=torch.float32)
        for line in lines:
            self.learner.check_time()
            self.learner.recipe = Recipe(build, line)
            try:
                built.run(None, x)
            except LearnerError as error:
                here = (_reached(error), self.learner.recipe, error)
                self._furthest = max(self._furthest, here, key=lambda one: one[0])
                continue
            yield line

    def _takes_one_sequence(self) -> bool:
        raising = self._furthest[2]
        return raising is not None and ONE_SEQUENCE in raising.error["message"]

    def _of_some_lengths(self, build: Line, built: Built, best: Line, lines: list[Line]) -> Line | None:
        """The call without optional arguments, if it runs at other lengths.

        Passing them would hide that the block fails at this length.
        """
        required = {one["name"] for one in built.forward or () if one["required"]}
        kept = tuple(one for one in best.arguments if not one.name or one.name in required)
        text = replace(best, arguments=kept).written()
        plainer = next((line for line in lines if line.written() == text), None)
        if self.call is not None or plainer is None or text == best.written():
            return None
        if any(next(self._running(build, built, [plainer], length), None) for length in OTHER_LENGTHS):
            return plainer
        return None

    def _better(self, build: Line, built: Built, best: Line, lines: list[Line], others: Iterator[Line]) -> Line:
        """The best call that runs: its mask hides later tokens, and its tables rotate by distance."""
        tests: list[Callable[[Case, Built], bool]] = []
        if "mask" in best.written() and "mask" in best.uses:
            tests.append(effects.hides_what_comes_later)
        if best.uses & {*TABLES}:
            tests.append(effects.turns_by_distance)
        if tests:
            leaks = []
            for line in itertools.chain([best], others):
                self.learner.recipe = Recipe(build, line)
                if all(test(self.case, built) for test in tests):
                    return line
                leaks.append((effects.leak(self.case, built) if effects.hides_what_comes_later in tests else 0.0, line))
            least = min(leak for leak, _ in leaks)  # a fault may fail every test
            return next(line for leak, line in leaks if leak <= least * (1 + NOISE))
        if self.call is not None or effects.order_counts(self.case, built):
            return best
        for line in self._running(build, built, self._turned_otherwise(best, lines)):
            if not effects.order_counts(self.case, built):
                continue
            if not line.uses & {*TABLES} or effects.turns_by_distance(self.case, built):
                handed = next((one.name for one in line.arguments if one.needed and one.uses & self._turning), "")
                self.case.report.conventions["rotates"] = f"only if {handed} is passed, as in every call here"
                return line
        return best

    def _made_causal(self, build: Line, built: Built, line: Line) -> Line:
        """Under a causal target, the call with a causal mask in an optional argument, if the block is not causal."""
        optional = [one for one in line.arguments if one.value == "mask" and not one.needed]
        self.learner.recipe = Recipe(build, line)
        if not (self.case.target.causal and self.call is None and optional):
            return line
        if not effects.sees_everything(self.case, built):
            return line
        masked = [
            replace(
                line, arguments=tuple(replace(a, value=form, needed=True) if a == one else a for a in line.arguments)
            )
            for one in optional
            for form in guess.MASKS
        ]
        running = self._running(build, built, masked)
        return next((one for one in running if effects.hides_what_comes_later(self.case, built)), line)

    def _without_cache(self, build: Line, built: Built, line: Line) -> Line:
        """The call without positions in a cache, if they raise without a cache."""
        for one in line.arguments:
            if one.value == "positions" and not one.needed and IN_A_CACHE.search(one.name):
                self.learner.recipe = Recipe(build, line)
                try:
                    built.run(None, self.case.x(2, TOKENS, dtype=torch.float32), positions=torch.arange(TOKENS))
                except LearnerError:
                    line = replace(line, arguments=tuple(other for other in line.arguments if other != one))
                    self.case.report.conventions["positions"] = f"{one.name} belongs to a cache, and is not passed"
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

    def _settled(self, built: Built) -> Built:
        """A new block, with the lines as they are reported."""
        recipe = self.learner.recipe
        build = recipe.build.settled(built.read, "config" in recipe.call.uses)
        self.learner.recipe = Recipe(build, recipe.call)
        usual_arguments(self.case)
        mask = next((one.value for one in recipe.call.arguments if one.needed and "mask" in one.uses), None)
        if isinstance(mask, str):
            self.case.report.conventions["mask_handed_in"] = MASKS[mask.partition("[")[0]]
        built = self.case.build()
        if build.callee == guess.WEIGHTED:
            self._refuse_copies(built)
        return built

    def _refuse_copies(self, built: Built) -> None:
        """Refuse a function of weights that does not compute with them, but fills modules of its own in each call."""
        try:
            x, cotangent = (self.case.x(2, TOKENS, dtype=torch.float32) for _ in range(2))
            gradients = built.run(None, x, cotangent=cotangent).gradients
        except LearnerError:
            return  # the checks report it
        if all(gradient is None for gradient in gradients.values()):
            name = self.learner.made["name"]
            raise UnknownArgumentsError(
                f"{name} copies its weights into modules that it makes anew in each call, so that no gradient reaches "
                "them; check the class of these modules instead."
            )

    def _give_up(self, error: LearnerError) -> NoReturn:
        if error.error["type"] == NotInstalledError.__name__:
            raise error
        self._give_up_entry(error)
        constructor = self.learner.made["constructor"] or ()
        tensors = [one["name"] for one in constructor if one["required"] and "Tensor" in one["annotation"]]
        if self.build is None and tensors and not self.learner.made["is_class"]:
            raise UnknownArgumentsError(
                f"a function must return a block, but {self.learner.made['name']} takes tensors ({', '.join(tensors)}) "
                "and computes an output; name a class, or a function that returns a torch.nn.Module with these weights."
            )
        names = [one["name"] for one in constructor if _is_unknown(one)]
        if self.build is None and names:
            raise UnknownArgumentsError(
                f"the constructor's {', '.join(names)} cannot be inferred from the name ({raised(error)}); "
                f'give the line that builds it: --build "{self.learner.made["name"]}(d_model, num_heads, ...)".'
            )
        raise error

    def _give_up_entry(self, error: LearnerError) -> None:
        if self.build is None and error.error["type"] == UnknownEntryError.__name__:
            raise UnknownArgumentsError(
                f"{error.error['message']}, and its value cannot be inferred from the name; give it in the line that "
                f'builds the block: --build "{self.learner.made["name"]}(config(NAME=VALUE))".'
            )

    def _give_up_call(self, error: LearnerError) -> None:
        self._give_up_entry(error)
        build, call = self.learner.recipe.build, self.learner.recipe.call
        if guessed := [*build.guessed, *call.guessed]:
            raise UnknownArgumentsError(
                f"{', '.join(dict.fromkeys(guessed))} had to be guessed, and forward raises {raised(error)}; "
                f'correct the lines that build and call it: --build "{build.written()}" --call "{call.written()}".'
            ) from error


MASKS = {
    "mask": "boolean, True where a query may attend",
    "~mask": "boolean, True where a query may not attend",
    "added(mask)": "numbers that are added to the scores: 0 where a query may attend, -inf where not",
    "None": "none",
}


def _is_unknown(one: guess.Description) -> bool:
    meaning = meanings.meaning_of(one["name"], loosely=True)
    plain = (
        meaning not in (None, "on", "off") or one["annotation"] in guess.PLAIN or meanings.CONFIG.search(one["name"])
    )
    return bool(one["required"]) and not plain


def _is_its_own(error: LearnerError) -> bool:
    """Whether no argument can be the reason: an undefined name, or an attribute that the block lacks."""
    kind, message = error.error["type"], error.error["message"]
    if kind in ("NameError", "UnboundLocalError", "ModuleNotFoundError", "NotImplementedError", "NotInstalledError"):
        return True
    return kind == "AttributeError" and not re.search(r"'(NoneType|dict|int|float|str|tuple|list)'|[Cc]onfig", message)


def _reached(error: LearnerError) -> list[int]:
    """How far a call got: its lines, from the outermost function to the innermost."""
    frames = error.error.get("frames") or ()
    own = [one for one in frames if "/torch/" not in str(one["file"]) and one["file"] != "<string>"]
    return [0, *(int(one["line"] or 0) for one in own)]
