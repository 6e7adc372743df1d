"""The registry of the classes that a setting can name, and the adapter around users' own."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import pytest

from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.plugins import Registry

_numbers = itertools.count()


class Scale(ABC):
    """An interface as the project has them: a setting, a fact, a property, an abstract and a plain method."""

    is_linear: bool = False

    def __init__(self, factor):
        self.factor = factor

    @property
    @abstractmethod
    def unit(self):
        """In which unit."""

    @abstractmethod
    def apply(self, value, offset=0):
        """Scale a value."""

    def twice(self, value):
        return self.apply(self.apply(value))


class Linear(Scale):
    is_linear = True
    unit = "m"

    def apply(self, value, offset=0):
        return self.factor * value + offset


SCALES = Registry("scales.name", Scale, {"linear": Linear})

OWN = """
from fedmtl_core.errors import DataError
from tests.core.test_registry import Scale

class Own(Scale):
    unit = "km"
    def apply(self, value, offset=0): return self.factor / value + offset
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a user's module with `Own`, to which lines of its body may be added; returns what names the class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])

    def write(body: str = "") -> str:
        name = f"scales_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(OWN + body)
        return f"{name}:Own"

    return write


def test_a_built_in_class_is_made_as_it_is():
    made = SCALES.make("linear", 3)
    assert type(made) is Linear
    assert (made.apply(2), made.twice(1), made.unit, made.is_linear) == (6, 9, "m", True)


def test_a_users_class_is_made_with_the_same_arguments_and_is_what_the_interface_says(own):
    made = SCALES.make(own(), 8)
    assert isinstance(made, Scale)
    assert (made.factor, made.unit, made.is_linear) == (8, "km", False)
    assert (made.apply(2), made.apply(2, offset=1), made.twice(2)) == (4, 5, 2)


def test_methods_and_facts_that_a_users_class_overrides_are_used(own):
    made = SCALES.make(own("    is_linear = True\n    def twice(self, value): return 'twice'\n"), 8)
    assert (made.twice(2), made.is_linear) == ("twice", True)


def test_a_users_class_may_set_facts_in_its_constructor_and_leave_the_interfaces_out(own):
    made = SCALES.make(own("    def __init__(self, factor): self.is_linear = True; self.factor = 2 * factor\n"), 8)
    assert made.is_linear
    assert made.apply(2) == 8  # by the user's own factor
    assert made.factor == 8  # what FedMTL itself asks for is the setting's


def test_a_property_is_read_once(own):
    made = SCALES.make(own("    times = 0\n    @property\n    def unit(self): self.times += 1; return self.times\n"), 8)
    assert (made.unit, made.unit) == (1, 1)


def test_what_a_users_method_raises_names_the_setting_the_class_and_the_place(own):
    reference = own()
    message = rf"^scales\.name: {reference} raised ZeroDivisionError: .*scales_\d+\.py, line 7\)$"
    with pytest.raises(ConfigError, match=message) as raised:
        SCALES.make(reference, 8).apply(0)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_an_error_of_fedmtls_own_passes_as_it_is(own):
    made = SCALES.make(own("    def twice(self, value): raise DataError('no rows')\n"), 8)
    with pytest.raises(DataError, match=r"^no rows$"):
        made.twice(1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    def __init__(self, factor, more): pass\n", "raised TypeError: .*'more'"),
        ("    unit = property(lambda self: self.nothing)\n", "raised AttributeError: .*'nothing'"),
        ("    apply = Scale.apply\n", "lacks the methods apply of Scale"),
        (
            "Own = Scale.apply\n",
            r"expected a subclass of tests\.core\.test_registry\.Scale; .* of the type function",
        ),
    ],
)
def test_a_users_class_that_cannot_be_made_is_named_with_its_setting(own, body, message):
    with pytest.raises(ConfigError, match=rf"^scales\.name: .*{message}"):
        SCALES.make(own(body), 8)


def test_two_objects_of_one_class_have_nothing_in_common(own):
    reference = own()
    one, other = SCALES.make(reference, 8), SCALES.make(reference, 16)
    assert (one.apply(2), other.apply(2), one.factor, other.factor) == (4, 8, 8, 16)
