SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.bench-installed
PIP_INSTALL := $(BIN)/pip install -qq --disable-pip-version-check
T ?= tests
P ?= tests/proofs
B ?=

# Where Kantis keeps its database and files; the tests use places of their own.
export KANTIS_DATA_DIR ?= $(CURDIR)/.kantis

.DEFAULT_GOAL := help
.PHONY: help venv run demo test prove soak bench check lint types architecture fix lock clean

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 14

venv: $(STAMP) ## Create .venv from the locked requirements

# --clear: what a new lock no longer names must not linger.
$(STAMP): requirements/dev.txt requirements/demo.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements/demo.txt
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(BENCH_STAMP): requirements/bench.txt $(STAMP)
	$(PIP_INSTALL) --require-hashes -r requirements/bench.txt
	@touch $@

run: venv ## Start Kantis on this machine
	$(BIN)/kantis serve

demo: venv ## Start Kantis with a year of receipts to look around in
	$(BIN)/kantis demo

test: venv ## Run the tests (T=tests/core for a part of them)
	$(BIN)/pytest -n auto --ignore=tests/proofs $(T)

prove: venv ## Run faults, races and fuzzing, each for a short while
	$(BIN)/pytest -n auto --durations=8 tests/proofs

soak: venv ## Run the same for hours (P=tests/proofs/test_crash.py for a part of it)
	KANTIS_SOAK=1 $(BIN)/pytest -n auto --timeout=0 $(P)

bench: venv $(BENCH_STAMP) ## Measure speed on this machine (B=--short to see that it works)
	$(BIN)/python -m bench $(B)

check: lint types architecture test prove ## Run all that must hold before a change goes in

lint: venv ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: venv $(BENCH_STAMP) ## Check types
	$(BIN)/mypy

architecture: venv ## Check who imports whom
	$(BIN)/lint-imports

fix: venv ## Mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
lock: venv ## Lock the newest versions that pyproject.toml allows
	$(COMPILE) --upgrade pyproject.toml --group dev --output-file requirements/dev.txt
	$(COMPILE) --upgrade --no-deps --group demo --output-file requirements/demo.txt
	$(COMPILE) --upgrade --group bench --constraints requirements/dev.txt --output-file requirements/bench.txt

clean: ## Remove what was built; data in KANTIS_DATA_DIR stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
