"""One spelling for every number and every name."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_examples import numbers_for

from nme.activations import ACTIVATIONS
from nme.errors import NmeError, unknown
from nme.methods import METHODS
from nme.registry import Named, Parameter, Registry, number

numbers = st.just(0.0) | st.floats(1e-12, 1e12)

# No sign, no exponent, no zero that could be left out.
CANONICAL = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]*[1-9])?")

SAMPLES = Registry("sample")


@SAMPLES.add
class Plain(Named):
    name = "plain"
    label = "Plain"


@SAMPLES.add
class Tuned(Named):
    name = "tuned_one"
    label = "tuned"
    parameters = {  # noqa: RUF012
        "p": Parameter(default=1, choices=(1, 2)),
        "beta": Parameter(default=0.5, symbol="β"),
        "width": Parameter(),
    }


def message(function, *arguments):
    with pytest.raises(NmeError) as caught:
        function(*arguments)
    return str(caught.value)


# ---------------------------------------------------------------- numbers


@given(numbers)
def test_a_number_has_one_form_that_loses_nothing(x):
    text = number(x)
    assert float(text) == x
    assert number(text) == text
    assert CANONICAL.fullmatch(text)


@given(numbers, st.integers(0, 3))
def test_all_spellings_of_a_number_give_one(x, zeros):
    plain = format(Decimal(repr(x)), "f")
    longer = (plain if "." in plain else plain + ".0") + "0" * zeros
    spellings = [
        repr(x),
        plain,
        longer,
        "0" * zeros + plain,
        f"{x:.16e}",
        f"{x:.16E}",
        f"+{plain}",
        f" {plain} ",
    ]
    assert {number(s) for s in spellings} == {number(x)}


@given(numbers, numbers)
def test_different_numbers_have_different_forms(x, y):
    assert (number(x) == number(y)) == (x == y)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.10, "0.1"), ("1e-3", "0.001"), (1e-3, "0.001"), (2.0, "2"), (100, "100"), (-0.0, "0"), ("-0", "0"),
     (0.1 + 0.2, "0.30000000000000004"), (1e12, "1000000000000"), (1e-12, "0.000000000001")],
)  # fmt: skip
def test_number_examples(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    "value",
    ["abc", "", "1,5", "0x10", None, True, False, [1], {}, -0.1, "-1", -1e-300, float("nan"), "nan",
     float("inf"), "-inf", 9e-13, 1.1e12, pytest.param(10**400, id="10^400")],
)  # fmt: skip
def test_what_is_no_number_is_named_with_what_is_allowed(value):
    text = message(number, value)
    assert str(value) in text
    assert "(allowed: 0 or a number from 1e-12 to 1e12)" in text
    assert "\n" not in text


# ------------------------------------------------------------------ names


def named(registry):
    """Every name of the registry, with any values of its parameters: (class, values)."""

    def with_values(cls):
        values = {key: numbers_for(p) for key, p in cls.parameters.items()}
        return st.tuples(st.just(cls), st.fixed_dictionaries(values))

    return st.sampled_from(list(registry.values())).flatmap(with_values)


REGISTRIES = pytest.mark.parametrize("registry", [SAMPLES, ACTIVATIONS, METHODS], ids=lambda r: r.what)


@REGISTRIES
@given(data=st.data())
def test_a_name_has_one_form_that_loses_nothing(registry, data):
    cls, values = data.draw(named(registry))
    written = "".join([cls.name, *(f"-{key}={number(value)}" for key, value in values.items())])
    thing = registry.parse(written)
    assert type(thing) is cls
    assert thing.values == values
    assert {key: getattr(thing, key) for key in values} == values
    again = registry.parse(str(thing))
    assert str(again) == str(thing)
    assert again.values == values
    defaults = [key for key, p in cls.parameters.items() if values[key] == p.default]
    assert not any(f"-{key}=" in str(thing) for key in defaults)


@REGISTRIES
def test_names_are_listed_under_what_they_are_called(registry):
    for name, cls in registry.items():
        assert name == cls.name
        assert cls.label
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), "names stand in paths, and '-' starts a parameter"
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", key) for key in cls.parameters)


@pytest.mark.parametrize(
    ("written", "canonical", "label"),
    [
        ("plain", "plain", "Plain"),
        ("tuned_one-width=3", "tuned_one-width=3", "tuned (width = 3)"),
        ("tuned_one-width=3-p=1-beta=0.50", "tuned_one-width=3", "tuned (width = 3)"),
        ("tuned_one-width=3.0-p=2.0", "tuned_one-p=2-width=3", "tuned (p = 2, width = 3)"),
        ("tuned_one-beta=2-width=3", "tuned_one-beta=2-width=3", "tuned (β = 2, width = 3)"),
        # The sign of an exponent is not the start of a parameter.
        ("tuned_one-width=1e-3", "tuned_one-width=0.001", "tuned (width = 0.001)"),
        ("tuned_one-width=1E-3-p=2", "tuned_one-p=2-width=0.001", "tuned (p = 2, width = 0.001)"),
    ],
)
def test_spellings_of_a_name(written, canonical, label):
    thing = SAMPLES.parse(written)
    assert str(thing) == canonical
    assert thing.full_label == label


def test_the_order_of_parameters_does_not_matter():
    one, other = (SAMPLES.parse(f"tuned_one{p}") for p in ("-p=2-beta=3-width=1", "-width=1-beta=3-p=2"))
    assert str(one) == str(other)


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("plian", ["sample 'plian'", "did you mean 'plain'?", "(allowed: plain, tuned_one)"]),
        ("zzzzzz", ["sample 'zzzzzz'", "(allowed: plain, tuned_one)"]),
        ("", ["sample ''", "(allowed: plain, tuned_one)"]),
        (None, ["sample 'None'"]),
        (3, ["sample '3'"]),
        ("tuned_one-width=1-bata=1", ["'tuned_one'", "'bata'", "did you mean 'beta'?", "beta, p, width"]),
        ("tuned_one", ["needs a value for 'width'", "tuned_one-width=1"]),
        ("tuned_one-p=2", ["needs a value for 'width'"]),
        ("tuned_one-width=1-width=2", ["'width' is given twice"]),
        ("tuned_one-width", ["unknown sample 'tuned_one-width'", "did you mean 'tuned_one'?"]),
        ("tuned_one-width=x", ["width", "'x' is not a number", "allowed"]),
        ("tuned_one-width=nan", ["width", "nan", "allowed"]),
        ("tuned_one-width=0", ["width", "greater than 0"]),
        ("tuned_one-width=-3", ["width", "-3 is out of range", "allowed"]),
        ("tuned_one-width=1-p=3", ["p is 3", "(allowed: 1, 2)"]),
        ("tuned_one-width=1-p=0", ["p is 0", "(allowed: 1, 2)"]),
        ("plain-beta=1", ["'plain'", "'beta'"]),
    ],
)
def test_a_mistake_in_a_name_is_one_message(written, parts):
    text = message(SAMPLES.parse, written)
    for part in parts:
        assert part in text
    assert "(allowed: )" not in text, "where nothing is allowed, the message says so"
    assert "\n" not in text


def test_only_a_near_name_is_suggested():
    assert "did you mean" not in message(SAMPLES.parse, "zzzzzz")


@given(st.text(max_size=8), st.lists(st.text("abc", min_size=1), min_size=1, unique=True))
def test_unknown_suggests_only_what_is_allowed(value, allowed):
    suggestion = re.search(r"; did you mean '(.*)'\?", unknown("thing", value, allowed), re.DOTALL)
    assert suggestion is None or suggestion.group(1) in allowed
