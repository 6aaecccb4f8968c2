"""What users import: nothing optional comes with it, and every name says what it is and takes."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

import udmlss

PUBLIC = {name: getattr(udmlss, name) for name in udmlss.__all__}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
CALLABLES = {name: value for name, value in PUBLIC.items() if callable(value) and not is_dataclass(value)}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
METRICS = {
    name: value
    for name, value in vars(udmlss.metrics).items()
    if inspect.isfunction(value) and value.__module__ == "udmlss.metrics" and not name.startswith("_")
}
METHODS = {
    f"{owner}.{name}": value
    for owner, cls in CLASSES.items()
    for name, value in vars(cls).items()
    if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
}


def section(docstring, title):
    """Return the lines under a title such as "Args:", without their common indentation; None if there is none."""
    found = re.search(rf"^{title}:\n((?:(?: .*)?\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    return None if found is None else inspect.cleandoc(found[1])


def documented(docstring, title):
    return re.findall(r"^(\w+):", section(docstring, title) or "", re.MULTILINE)


def arguments_of(value):
    return [name for name in inspect.signature(value).parameters if name != "self"]


def test_importing_brings_nothing_optional_draws_nothing_and_prints_nothing():
    code = """
import sys, numpy, torch
before = torch.get_rng_state(), numpy.random.get_state()[1].copy()
import udmlss
assert torch.equal(torch.get_rng_state(), before[0])
assert (numpy.random.get_state()[1] == before[1]).all()
optional = {"faiss", "matplotlib", "torchvision", "PIL", "efficientnet_lite_pytorch", "udmlss.data"}
assert not optional & set(sys.modules), optional & set(sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603 (our own code)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_public_names_are_sorted_and_each_once():
    assert udmlss.__all__ == sorted(set(udmlss.__all__), key=udmlss.__all__.index)
    assert udmlss.__all__ == sorted(udmlss.__all__)


def test_a_star_import_brings_every_public_name():
    names = {}
    exec("from udmlss import *", names)  # noqa: S102 (a star import stands nowhere else)
    assert {name: names[name] for name in udmlss.__all__} == PUBLIC


def test_the_version_is_that_of_a_release():
    assert re.fullmatch(r"\d+\.\d+\.\d+", udmlss.__version__)


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS, *(f"metrics.{name}" for name in METRICS)])
def test_every_public_name_has_a_docstring_that_begins_with_one_sentence(name):
    value = PUBLIC.get(name) or METHODS.get(name) or METRICS[name.removeprefix("metrics.")]
    first, *rest = inspect.cleandoc(value.__doc__).splitlines()
    assert re.search(r"[.:]$", first)  # a colon: the sentence goes on in a list
    assert not rest or rest[0] == ""


@pytest.mark.parametrize("name", [name for name, value in CALLABLES.items() if arguments_of(value)])
def test_every_argument_is_documented_once_in_order_and_no_other(name):
    assert documented(CALLABLES[name].__doc__, "Args") == arguments_of(CALLABLES[name])


@pytest.mark.parametrize("name", [name for name, value in CLASSES.items() if is_dataclass(value)])
def test_every_field_of_a_value_is_named_in_its_docstring(name):
    docstring = CLASSES[name].__doc__
    named = documented(docstring, "Attributes")
    expected = [field.name for field in fields(CLASSES[name])]
    assert named == expected if named else all(re.search(rf"\b{field}", docstring) for field in expected)


@pytest.mark.parametrize(
    "name", [name for name in FUNCTIONS if name != "frozen_batch_norm"]
)  # a context returns nothing
def test_every_function_says_what_it_returns(name):
    assert section(FUNCTIONS[name].__doc__, "Returns")


@pytest.mark.parametrize("name", CALLABLES)
def test_every_function_and_part_shows_an_example(name):
    assert section(CALLABLES[name].__doc__, "Example")


@pytest.mark.parametrize("name", CALLABLES)
def test_choices_come_by_keyword_and_no_flag_by_position(name):
    for parameter in inspect.signature(CALLABLES[name]).parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD
        assert not (parameter.kind is parameter.POSITIONAL_OR_KEYWORD and isinstance(parameter.default, bool))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_documents_its_arguments_or_says_where_they_are(name):
    docstring = METRICS[name].__doc__
    told = "rguments and errors as in `recall_at_k`" in " ".join(docstring.split()) or "arguments as in" in docstring
    assert told or documented(docstring, "Args") == arguments_of(METRICS[name]) or len(arguments_of(METRICS[name])) <= 2
