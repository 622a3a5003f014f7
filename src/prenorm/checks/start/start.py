"""The start of a judgement: finds the lines that build and call a block, by trying candidates.

It reports as conventions what it finds on the way: the meaning of the mask, and where rotations come from.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ..formula.parameters import Sizes
from ..probes.case import MAX_SEQ_LEN, Case, raised
from ..source.containers import container
from ..source.misspelt import misspelt
from ..subject.child import meanings
from ..subject.child.errors import NoShapesError
from ..subject.child.names import UnknownEntryError
from ..subject.learner import Built
from ..subject.raised import Description, LearnerError, refuses
from ..subject.recipe import Argument, Line, Recipe, given
from . import build_lines, call_lines, effects
from .best_call import EACH, Calls
from .refusals import (
    UnknownArgumentsError,
    entry_that_lacks,
    is_further,
    is_its_own,
    is_optional,
    reached,
    refuse_build,
    refuse_call,
    refuse_container,
    refuse_given,
    refuse_layers,
    refuse_sizes,
    refuse_without,
)

TOKENS = 7
TRIED = (
    Sizes(),
    Sizes(d_model=64, num_heads=4, num_kv_heads=4, d_ff=320),
    Sizes(d_model=256, num_heads=4, num_kv_heads=4, d_ff=704),
)
"""The sizes that are tried in order: some constructors insist on multiples of 64."""
OTHER_NUMBERS = ("guessed(1)", "guessed(d_model // 2)")
"""Tried in place of numbers that are guessed: 1 divides every size; half of d_model has room for all tokens."""
MASKS = {
    "mask": "boolean, True where a query may attend",
    "~mask": "boolean, True where a query may not attend",
    "added(mask)": "numbers that are added to the scores: 0 where a query may attend, -inf where not",
    "mask.to(x.dtype)": "ones where a query may attend, and zeros",
    "None": "none",
}


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


class _Start:
    """One search for both lines, with one set of sizes."""

    def __init__(self, case: Case, build: str | None, call: str | None, text: str) -> None:
        self.case, self.learner = case, case.learner
        self.build = None if build is None else given(build, "build")
        self.call = None if call is None else given(call, "call")
        self.text = text

    def found(self) -> Built:
        """A block, with both lines in the learner's recipe."""
        errors: list[LearnerError] = []
        built_at_all: Built | None = None
        tried: list[Calls] = []
        for line in self._builds():
            try:
                built = self._built(line)
            except LearnerError as error:
                errors.append(error)
                continue
            if built.layers:
                refuse_layers(self.learner, built.layers)
            if self.call is None and (apart := container(self.text, self.learner.made["name"])) is not None:
                refuse_container(apart)
            built_at_all = built_at_all or built
            tried.append(Calls(self.case, line, built, self.call, self.text))
            if tried[-1].found():
                self._say_what_raised(line, errors)
                return self._settled(built)
        if built_at_all is None:
            self.learner.recipe = Recipe(next(self._builds()))
            if self.build is not None:
                refuse_given("--build", self.build, errors[0])
            if self.build is None:
                self._refuse_if_demanded(errors[0], self.learner.made["constructor"])
            if self._is_its_own(errors[0]):
                raise errors[0]
            refuse_build(self.learner, errors[0], guessed=self.build is None)
        furthest = [one.furthest for one in tried if one.furthest is not None]
        self.learner.recipe, raising = furthest[0]
        for recipe, other in furthest[1:]:
            if is_further(other, raising):
                self.learner.recipe, raising = recipe, other
        if self.call is not None:
            refuse_given("--call", self.call, raising)
        if not is_its_own(raising):
            if (axes := effects.axes_of_images(self.case, built_at_all)) is not None:
                raise UnknownArgumentsError(f"its input is {axes}; only blocks for (batch, seq, d_model) are judged.")
            if self.build is None and not self._takes_sizes():
                refuse_sizes(self.learner, raising)
            if self.call is None:
                self._refuse_if_demanded(raising, built_at_all.forward)
            if not (self._is_its_own(raising) or self._raises_as_it_is(tried)):
                refuse_call(self.learner, raising)
        return self._settled(built_at_all)  # its first call reports the error

    def _say_what_raised(self, line: Line, errors: Sequence[LearnerError]) -> None:
        """Report that the file's own configuration lacks what the block reads, where the checker's own does not."""
        if not any(isinstance(one.value, Line) and one.value.callee == "config" for one in line.arguments):
            return
        for error in errors:
            if entry := entry_that_lacks(self.learner, error):
                if entry.meant:
                    self.case.report.errors.setdefault("constructor_error", error.error)
                    self.case.report.found("constructor_error", f"{raised(error)}; it has {entry.meant!r}")
                else:
                    self.case.report.conventions["configuration"] = f"the file's own raises {raised(error)}"
                return

    def _builds(self) -> Iterator[Line]:
        if self.build is not None:
            yield self.build
            return
        wants_rope = any(meanings.ROPE.search(one["name"]) for one in self.learner.made["constructor"] or ())
        if wants_rope and not any(one["kind"] in ("class", "function") for one in self.learner.made["helpers"]):
            self.learner.look_beside()
        yield from itertools.islice(build_lines.builds(self.learner.made), build_lines.MOST)
        yield from itertools.islice(build_lines.builds_of_file(self.learner.made), build_lines.MOST)
        yield from build_lines.builds_with_a_switch(self.learner.made)

    def _built(self, line: Line) -> Built:
        self.learner.recipe = Recipe(line)
        usual_arguments(self.case)
        return self.case.build()

    def _is_its_own(self, error: LearnerError) -> bool:
        """Whether the same is raised if nothing can be read of guessed values, and kept defaults are twice as large.

        Of a number that is guessed its size may be read, if the same is raised for all: for those OTHER_NUMBERS, too.
        """
        recipe = self.learner.recipe
        if error.error["type"] in (UnknownEntryError.__name__, NoShapesError.__name__):
            return False
        if (entry := entry_that_lacks(self.learner, error)) is not None and not entry.meant:
            return False
        of_transformers = {one["name"] for one in self.learner.made["helpers"] if one.get("of_transformers")}
        if error.stage == "constructor" and recipe.build.uses & of_transformers and not is_its_own(error):
            return False  # such a configuration differs from release to release
        blind = self._with_guesses("unread")
        if blind == recipe or self._raises_the_same(error, blind):
            return True
        others = [self._with_guesses(number) for number in OTHER_NUMBERS]
        if others[0] == blind or refuses(error):
            return False
        return all(self._raises_the_same(error, other) for other in others)

    def _raises_as_it_is(self, tried: Sequence[Calls]) -> bool:
        """Whether the plainest call raises, whatever its optional arguments are. Stores its lines."""
        before = self.learner.recipe
        for recipe, error in (one.plainest for one in tried if one.plainest is not None):
            self.learner.recipe = recipe
            if self.call is not None or self._with_guesses("unread") != recipe:
                continue
            if is_its_own(error) or self._raises_the_same(error, self._with_unread(recipe)):
                return True
        self.learner.recipe = before
        return False

    def _with_unread(self, recipe: Recipe) -> Recipe:
        """The recipe with something that cannot be read in place of None for optional arguments of forward."""
        there = {one.name for one in recipe.call.arguments}
        forward = self.case.build().forward
        names = [one["name"] for one in forward or () if is_optional(one) and one["name"] not in there]
        more = (Argument(name, "unread", True) for name in names)
        return Recipe(recipe.build, replace(recipe.call, arguments=(*recipe.call.arguments, *more)))

    def _refuse_if_demanded(self, error: LearnerError, parameters: Sequence[Description] | None) -> None:
        """Raise UnknownArgumentsError if a statement demands optional arguments: with them, the block goes on.

        parameters: of the constructor, or of forward.
        """
        if not refuses(error):
            return
        recipe = self.learner.recipe
        line = recipe.build if error.stage == "constructor" else recipe.call
        there = {one.name for one in line.arguments}
        optional = [one["name"] for one in parameters or () if is_optional(one) and one["name"] not in there]
        named = [name for name in optional if re.search(rf"\b{name}\b", error.error["message"])]
        for names in [named] if named else [[name] for name in optional]:
            more = replace(line, arguments=(*line.arguments, *(Argument(name, "unread", True) for name in names)))
            other = Recipe(more, recipe.call) if error.stage == "constructor" else Recipe(recipe.build, more)
            raising = self._raising(other)
            if raising is None or is_further(raising, error):
                refuse_without(self.learner, names, error)

    def _with_guesses(self, number: str) -> Recipe:
        """The recipe with other values for what is guessed: number for numbers."""
        recipe = self.learner.recipe
        build = build_lines.with_defaults(recipe.build.unread(number), self.learner.made, 2)
        return Recipe(build, recipe.call.unread(number))

    def _raises_the_same(self, error: LearnerError, blind: Recipe) -> bool:
        """Whether a recipe with other values for what is guessed raises the error."""
        other, alone = self._raising(blind), self._raising(Recipe(blind.build, replace(blind.call, callee=EACH)))
        if other is None or alone is None or is_further(alone, error):  # a sequence alone may need the values
            return False
        said = [(one.error["type"], one.error["message"], reached(one)) for one in (error, other)]
        return said[0] == said[1]

    def _takes_sizes(self) -> bool:
        """Whether the shapes of its parameters depend on d_model, or it is handed d_model by name."""
        if "d_model" in self.learner.recipe.build.uses:
            return True
        sizes = self.case.sizes
        larger = replace(sizes, d_model=2 * sizes.d_model)
        try:
            shapes = [[one["shape"] for one in self.case.build(sizes=size).parameters] for size in (sizes, larger)]
        except LearnerError:
            return True
        return shapes[0] != shapes[1]

    def _settled(self, built: Built) -> Built:
        """A new block, with the lines as they are reported."""
        recipe = self.learner.recipe
        kept = "config" in recipe.call.uses or recipe.build.uses_kept("config")
        build = recipe.build.settled(built.read, kept)
        self.learner.recipe = Recipe(build, recipe.call)
        usual_arguments(self.case)
        mask = next((one.value for one in recipe.call.arguments if one.needed and "mask" in one.uses), None)
        if isinstance(mask, str):
            self.case.report.conventions["mask_handed_in"] = MASKS[mask.partition("[")[0]]
        elif padding := [one for one in recipe.call.arguments if one.value in call_lines.OF_ALL_TOKENS]:
            sense = f"{padding[0].name} is one of padding, (batch, seq): all entries are tokens in every call"
            self.case.report.conventions["mask_handed_in"] = sense
        built = self.case.build()
        if build.callee == build_lines.WEIGHTED:
            self._refuse_copies(built)
        if build.uses & {"weights"} and not built.parameters:
            raise UnknownArgumentsError(
                f"{self.learner.made['name']} has no parameters: it keeps the dictionary of weights; make them "
                "parameters (torch.nn.ParameterDict)."
            )
        if (self.build or self.call) and (files := built.elsewhere()):
            told = [f"{name} is that of {file}" for name, file in files.items()]
            self.case.report.conventions["names_of_other_files"] = "; ".join(told)
        if self.build is None:
            self._say_which_defaults_raise()
        return built

    def _say_which_defaults_raise(self) -> None:
        """Report, as a convention, defaults of the constructor that do not run, and are never used for that."""
        recipe = self.learner.recipe
        names = build_lines.optional(recipe.build, self.learner.made)
        if not names or self._raising(recipe) is not None:
            return
        together = self._raising(Recipe(build_lines.without(recipe.build, names), recipe.call))
        if together is not None:
            alone = {
                name: self._raising(Recipe(build_lines.without(recipe.build, [name]), recipe.call)) for name in names
            }
            which = {name: error for name, error in alone.items() if error} or {", ".join(names): together}
            said = [f"without {name} it raises {raised(error)}" for name, error in which.items()]
            for error in which.values():
                if misspelt(error.error, self.text):
                    self.case.report.errors.setdefault(f"{error.stage}_error", error.error)
                    self.case.report.found(f"{error.stage}_error", "; ".join(said))
                    return
            self.case.report.conventions["constructor_defaults"] = f"{'; '.join(said)}; always passed here"

    def _raising(self, recipe: Recipe) -> LearnerError | None:
        """The error of a block that is built and called by these lines."""
        before, self.learner.recipe = self.learner.recipe, recipe
        try:
            self.case.build().run(None, self.case.x(2, TOKENS, dtype=torch.float32))
        except LearnerError as error:
            return error
        finally:
            self.learner.recipe = before
        return None

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
