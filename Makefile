# Everything a developer runs. `make install` once; every other target installs what it needs by itself.
#   PYTHON=python3.12 make install     choose the interpreter of the virtual environment
#   PYTEST_ARGS="-k posterior" make test
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# every package comes at the version this project was tested with, the build backend included
PIP    := $(BIN)/python -m pip install --quiet --constraint constraints.txt
EDIT   := --editable . --build-constraint constraints.txt
SOURCE := $(shell find src -name '*.py' 2>/dev/null)
DEMO   := demo/pbmc_classified.h5ad
# one thread per process: tests run in two of them, and more threads than cores make torch slow
THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1
JOBS   ?= 2
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types format docs benchmark build clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

install: $(VENV)/.install-stamp ## the package and its development tools, into .venv

# the virtual environment itself, with a pip that knows dependency groups
$(VENV)/.venv-stamp: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

$(VENV)/.install-stamp: pyproject.toml constraints.txt $(VENV)/.venv-stamp
	@echo "installing into $(VENV), a minute or more"
	$(PIP) $(EDIT) --group test --group dev
	@touch $@

$(VENV)/.docs-stamp: $(VENV)/.install-stamp
	$(PIP) --group doc
	@touch $@

$(VENV)/.bench-stamp: $(VENV)/.install-stamp
	$(PIP) --group bench
	@touch $@

demo: $(DEMO) ## fit and classify a small PBMC set; results in demo/
	@echo "The demo is in $(dir $(DEMO)):"
	@ls -1p $(dir $(DEMO)) | sed 's|^|  $(dir $(DEMO))|'

# the command writes this file last, so its presence means that the demo ran to its end
$(DEMO): $(SOURCE) $(VENV)/.install-stamp
	$(THREADS) MPLBACKEND=Agg $(BIN)/scscore demo --out $(dir $(DEMO))

lint: $(VENV)/.install-stamp ## ruff (rules and format) and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

types: $(VENV)/.install-stamp ## mypy alone
	$(BIN)/mypy

format: $(VENV)/.install-stamp ## rewrite the code the way lint wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: lint ## lint, then the fast tests on two processes
	$(THREADS) MPLBACKEND=Agg $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-slow: $(VENV)/.install-stamp ## the tests marked slow
	$(THREADS) MPLBACKEND=Agg $(BIN)/python -m pytest -n $(JOBS) -m slow $(PYTEST_ARGS)

docs: $(VENV)/.docs-stamp ## html into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

benchmark: $(VENV)/.bench-stamp ## every benchmark; tables on screen, csv files in benchmarks/results
	@set -e; for script in benchmarks/[!_]*.py; do \
	    test -e "$$script" || { echo "no benchmarks/*.py to run"; exit 1; }; \
	    echo "== $$script"; $(BIN)/python "$$script"; done

build: $(VENV)/.install-stamp ## source archive and wheel into dist/
	PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m build

clean: ## remove what the other targets made, but keep .venv
	rm -rf build dist demo docs/_build docs/generated docs/tutorials lightning_logs htmlcov
	rm -rf .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.* coverage.xml
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove .venv as well
	rm -rf $(VENV)
