# Needs make and Python 3.11 or newer; the first target that is run builds .venv.

PYTHON  ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN     := .venv/bin
WORKERS ?= 2

.PHONY: help demo test lint nightly bench docs clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: .venv ## train small memories on real text, compare them, generate (ARGS="--text FILE")
	$(BIN)/python examples/demo.py $(ARGS)

test: lint docs ## everything that must be green before a commit
	HYPOTHESIS_PROFILE=ci $(PYTEST)

lint: .venv ## style, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

nightly: .venv ## every combination, the slow bars, and mutants of the engine
	HYPOTHESIS_PROFILE=nightly $(PYTEST) -m "nightly or not nightly"
	$(BIN)/python -m tests.mutants

bench: .venv ## speed and memory against other packages (ARGS=...)
	$(BIN)/python -m benchmarks $(ARGS)

docs: .venv ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove what the targets above made, except .venv and runs
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name '.?*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

# The workers already use every core; more threads in each only wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

# The stamp is newer than its prerequisites once everything they ask for is installed.
.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error Python 3.11 or newer is needed; name one with PYTHON=...))
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
