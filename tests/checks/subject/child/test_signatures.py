"""What a learner's constructor takes, also of its **kwargs."""

from prenorm.checks.subject.child.signatures import parameters


class Configuration:
    def __init__(self, width=64, **kwargs):
        self.width = width
        self.eps = kwargs.get("eps", 1e-6)
        self.heads = kwargs.pop("heads")
        self.rest = dict(kwargs.items())


class OfASize:
    def __init__(self, sizes):
        self.width, self.heads = sizes.d_model, sizes.num_heads


def test_entries_of_keywords_are_what_is_read_and_no_methods_of_a_dictionary():
    found = {one["name"]: one["required"] for one in parameters(Configuration) or ()}
    assert found == {"width": False, "kwargs": False, "eps": False, "heads": True}


def test_an_argument_with_attributes_of_sizes_is_a_configuration():
    assert [one["settings"] for one in parameters(OfASize) or ()] == [True]
