"""A class that is built and called, without a judgement of its numbers: for tests of single checks."""

import torch
from torch import nn

from prenorm.checks.probes.case import Case, Report
from prenorm.checks.source.code import Code
from prenorm.checks.start.start import start
from prenorm.checks.subject.learner import Learner
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.targets import Target


def started(block: type[nn.Module]) -> Case:
    """The case of a class, with the lines that build and call it."""
    learner = Learner(LocalSubject(block))
    learner.load(Code(root="", module=block.__module__, file="", name=block.__name__))
    case = Case(learner=learner, target=Target(), generator=torch.Generator().manual_seed(0), report=Report())
    start(case)
    return case
