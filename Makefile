# make demo   the main job, on a real model          make test   the tests
# make quick  the tests that need no real model      make lint   ruff, mypy, and the words of the text
# make test-latest   the quick tests and the demo with the newest versions that pyproject.toml allows
# make constraints   renews constraints.txt, the exact versions that `make setup` installs, from those same versions
# make test-llamacpp   an exported adapter in real llama.cpp
# make test-studio     the studio, its page in Debian's chromium, which is installed where it is missing (as root)
# make bench-edits     our edits beside the statement in the prompt, fine-tuning, LoRA, ROME and MEMIT; NPT_DATA=FOLDER
# make search-edits METHOD=rome   the search for a baseline's settings
# make bench           what dynamic mode and edits cost, in ratios to the pretrained model
# make bench-check     fails where dynamic mode is twice as slow as it may be
# make study           the five presets at equal parameters; NPT_DATA=FOLDER
# make extensions      what the four extensions of the generator gain
PYTHON ?= python3
BIN := .venv/bin

LATEST := .venv-latest/bin

# Most tests are many small products: processes with one thread each do them sooner than one with many threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

BENCH ?=

.PHONY: setup latest demo test test-latest test-llamacpp test-studio constraints bench bench-check bench-edits search-edits study \
	extensions quick lint format clean

setup: .venv/.installed

# torch and the build backend come first. Without build isolation, the backend too is the one in constraints.txt.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

# Always made anew, so that every version is resolved again. torch alone stays pinned, here and by that in
# constraints.txt: the newest one that an index offers can bring gigabytes of CUDA along.
latest:
	rm -rf .venv-latest
	$(PYTHON) -m venv .venv-latest
	$(LATEST)/python -m pip install --quiet torch==2.13.0 setuptools
	$(LATEST)/python -m pip install --quiet --upgrade --upgrade-strategy eager torch==2.13.0 -e ".[dev]"

# A local label of a version (2.13.0+cpu) is cut off: it names one index's build.
constraints: latest
	$(LATEST)/python -m pip freeze --all --exclude pip --exclude-editable > .venv-latest/frozen
	echo "# The exact versions that \`make setup\` installs. Written by \`make constraints\`, with $$($(LATEST)/python --version)." \
		> .venv-latest/constraints.txt
	sed 's/+.*//' .venv-latest/frozen >> .venv-latest/constraints.txt
	! grep -vE '^(#.*|[A-Za-z0-9._-]+==[A-Za-z0-9._!]+)$$' .venv-latest/constraints.txt
	mv .venv-latest/constraints.txt constraints.txt

demo: setup
	$(BIN)/npt demo

test: setup
	$(PYTEST) -m "not llamacpp"

# What a dependency deprecates is listed at the end of the tests, and does not fail them.
test-latest: latest
	$(subst $(BIN),$(LATEST),$(PYTEST)) -m "not real and not slow and not browser" \
		-W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning
	$(LATEST)/python -W default::DeprecationWarning -m neuroplastic.cli demo

# llama.cpp is built from source (five minutes), without its native paths: one of them crashes on some processors.
test-llamacpp: setup
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" \
		$(BIN)/python -m pip install --quiet -c constraints.txt llama-cpp-python
	$(BIN)/python -m pytest -s tests/llamacpp

test-studio: setup
	test -x /usr/bin/chromium || apt-get install -y --no-install-recommends chromium
	$(BIN)/python -m pytest tests/studio tests/text/test_generation.py

bench-edits: setup
	$(BIN)/python benchmarks/edits.py $(BENCH)

search-edits: setup
	cd benchmarks && ../$(BIN)/python -m baselines.search $(METHOD) $(BENCH)

# tests/ holds the explicit path that naive compares with
bench: setup
	cd benchmarks && for part in forward decode memory naive edit scale; do PYTHONPATH=../tests ../$(BIN)/python -m speed.$$part || exit 1; done

bench-check: setup
	cd benchmarks && ../$(BIN)/python -m speed.forward --check --repeat 5 --length 256

study: setup
	$(BIN)/python benchmarks/study.py $(BENCH)

extensions: setup
	cd benchmarks && ../$(BIN)/python extensions.py $(BENCH)

quick: setup
	$(PYTEST) -m "not real and not slow and not browser"

lint: setup
	$(BIN)/ruff check src tests examples benchmarks tools
	$(BIN)/ruff format --check src tests examples benchmarks tools
	$(BIN)/mypy
	$(BIN)/python tools/words.py

format: setup
	$(BIN)/ruff check --fix src tests examples benchmarks tools
	$(BIN)/ruff format src tests examples benchmarks tools

clean:
	rm -rf .venv .venv-latest
