"""The public names: what importing them does, and what their docstrings must hold."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

import udmlss

PUBLIC = {name: getattr(udmlss, name) for name in udmlss.__all__}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
VALUES = {name: value for name, value in CLASSES.items() if is_dataclass(value)}
CALLABLES = {name: value for name, value in PUBLIC.items() if callable(value) and name not in VALUES}
FUNCTIONS = {name: value for name, value in CALLABLES.items() if inspect.isfunction(value)}
METRICS = {f"metrics.{name}": getattr(udmlss.metrics, name) for name in udmlss.metrics.__all__}
METHODS = {
    f"{owner}.{name}": value
    for owner, cls in CLASSES.items()
    for name, value in vars(cls).items()
    if not name.startswith("_") and isinstance(value, property | classmethod | type(lambda: None))
}


def section(docstring, title):
    """Return the lines under a title such as "Args:", without their common indentation, or None if it is missing."""
    found = re.search(rf"^{title}:\n((?:(?: .*)?\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    return None if found is None else inspect.cleandoc(found[1])


def documented(value, title="Args"):
    return re.findall(r"^(\w+):", section(value.__doc__, title) or "", re.MULTILINE)


def arguments_of(value):
    return [name for name in inspect.signature(value).parameters if name != "self"]


def test_importing_loads_nothing_optional_samples_no_random_numbers_and_prints_nothing():
    code = """
import sys, numpy, torch
before = torch.get_rng_state(), numpy.random.get_state()[1].copy()
import udmlss
assert torch.equal(torch.get_rng_state(), before[0])
assert (numpy.random.get_state()[1] == before[1]).all()
optional = {"faiss", "matplotlib", "torchvision", "PIL", "efficientnet_lite_pytorch", "udmlss.data", "timm"}
optional |= {"safetensors", "huggingface_hub", "onnx", "tensorboard", "wandb", "mlflow", "jinja2"}
assert not optional & set(sys.modules), optional & set(sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_public_names_are_sorted_and_unique_and_the_version_has_three_numbers():
    assert udmlss.__all__ == sorted(set(udmlss.__all__))
    assert re.fullmatch(r"\d+\.\d+\.\d+", udmlss.__version__)


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS, *METRICS])
def test_a_docstring_starts_with_one_sentence(name):
    first, *rest = inspect.getdoc((PUBLIC | METHODS | METRICS)[name]).splitlines()
    assert first.endswith(".")
    assert not rest or rest[0] == ""


@pytest.mark.parametrize("name", CALLABLES)
def test_a_function_or_class_documents_its_arguments_in_order_and_shows_an_example(name):
    value = CALLABLES[name]
    assert documented(value) == arguments_of(value)
    assert section(value.__doc__, "Example")
    for parameter in inspect.signature(value).parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD
        assert not (parameter.kind is parameter.POSITIONAL_OR_KEYWORD and isinstance(parameter.default, bool))


@pytest.mark.parametrize("name", VALUES)
def test_a_result_documents_its_fields_in_order(name):
    named = documented(VALUES[name], "Attributes") or documented(VALUES[name])
    expected = [field.name for field in fields(VALUES[name])]
    assert named == expected or all(re.search(rf"\b{field}\b", VALUES[name].__doc__) for field in expected)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"frozen_batch_norm"}))  # a context manager returns nothing
def test_a_function_documents_what_it_returns(name):
    assert section(FUNCTIONS[name].__doc__, "Returns")


@pytest.mark.parametrize("name", [name for name, value in METRICS.items() if inspect.isfunction(value)])
def test_a_metric_documents_its_arguments_or_refers_to_another_metric(name):
    value = METRICS[name]
    refers = re.search("[Aa]rguments( and errors)? (are|as)", " ".join(value.__doc__.split()))
    assert refers or documented(value) == arguments_of(value) or len(arguments_of(value)) <= 2
