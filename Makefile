# make demo   the main job, on a real model          make test   the tests
# make quick  the tests that need no real model      make lint   ruff and mypy
# make test-llamacpp   an exported adapter in real llama.cpp
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-llamacpp quick lint format clean

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
	$(BIN)/python -m pytest -m "not llamacpp"

# llama.cpp is built from source (five minutes), without its native paths: one of them crashes on some processors.
test-llamacpp: setup
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" \
		$(BIN)/python -m pip install --quiet llama-cpp-python
	$(BIN)/python -m pytest -s tests/llamacpp

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
