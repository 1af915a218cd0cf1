# make demo   the main job, on a real model          make test   the tests
# make quick  the tests that need no real model      make lint   ruff and mypy
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test quick lint format clean

setup: .venv/.installed

# torch first and pinned: an unpinned torch brings gigabytes of CUDA along.
.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/npt demo

test: setup
	$(BIN)/python -m pytest

quick: setup
	$(BIN)/python -m pytest -m "not real and not slow"

lint: setup
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix src tests examples benchmarks
	$(BIN)/ruff format src tests examples benchmarks

clean:
	rm -rf .venv
