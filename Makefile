# `make demo` and `make test` set up what they need in .venv; a second call reuses it.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadgroup --doctest-modules

.PHONY: demo test coverage attacks lint types contract docs package clean

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart.py

test: lint types contract docs
	$(PYTEST) udmlss tests

# Lists the lines that no test runs. It takes twice as long as the tests alone.
coverage: $(VENV)/.test
	$(PYTEST) --cov --cov-report=term udmlss tests

# ONLY=kills runs one attack. Checks of shapes are off, because they change Python's random state, which is compared.
attacks: $(VENV)/.test
	JAXTYPING_DISABLE=1 $(BIN)/pytest -n 2 -m "slow$(if $(ONLY),(attack='$(ONLY)'))" --what-is-tested docs/what-is-tested.md tests

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.test
	$(BIN)/mypy

contract: $(VENV)/.test
	$(BIN)/lint-imports

docs: $(VENV)/.test
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

package: $(VENV)/.test
	$(BIN)/python -m build --outdir dist

$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[faiss-cpu,demo]"
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable ".[faiss-cpu,demo,timm,tensorboard,wandb,mlflow,onnx,hub]" --group test --group docs
	touch $@

clean:
	rm -rf $(VENV) dist docs/_build .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
