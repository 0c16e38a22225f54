# `make demo` answers questions about images, `make test` runs the tests; each makes .venv by itself.
# Another Python: `make PYTHON=python3.12 demo`. Fewer or more test processes: `make JOBS=4 test`.

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt

.PHONY: help demo test test-slow fuzz test-triton36 theirs lint types format report clean

help:
	@echo "make demo           answer questions about the bundled images and write demo.png"
	@echo "make test           lint, then every test but the slow ones"
	@echo "make test-slow      the tests that take too long for every change"
	@echo "make fuzz           20,000 mutated files: SEED=1 CASES=1000 JOBS=4 choose others"
	@echo "make test-triton36  compile and interpreter tests on Triton 3.6, in .venv-triton36"
	@echo "make theirs         transformers' own tests on our classes, and tests/THEIRS.md anew"
	@echo "make lint           ruff, its formatter's check, and mypy"
	@echo "make format         let ruff lay out every file"
	@echo "make report         README's performance section and its plots, from the files in bench/results"
	@echo "make clean          remove environments, builds and caches"

demo: .venv/.run
	$(BIN)/vilt-fast demo --out demo.png

# One thread per process: the images and models of the tests are too small to share between threads.
QUIET := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

test: lint
	$(QUIET) $(BIN)/pytest -q -n $(JOBS) -m "not slow" --durations=10

test-slow: .venv/.dev
	$(QUIET) $(BIN)/pytest -q -n $(JOBS) -m slow --durations=10

# Another seed makes other cases; a case that fails prints how to run it alone.
SEED ?= 0
CASES ?= 20000
fuzz: .venv/.dev
	$(QUIET) $(BIN)/python tests/fuzz/run.py --seed $(SEED) --cases $(CASES) --jobs $(JOBS)

# Triton 3.6 is what PyTorch 2.11 ships with. Its interpreter breaks on NumPy 2.4.
test-triton36: .venv-triton36/.dev
	$(QUIET) .venv-triton36/bin/pytest -q -n $(JOBS) tests/ops tests/models/test_kernels_end_to_end.py

# A folder of transformers' per-model test files as well: make SOURCE=DIR theirs
theirs: .venv/.dev
	$(QUIET) $(BIN)/python tests/run_theirs.py --update $(if $(SOURCE),--source $(SOURCE))

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# kernels/, reference/ and bench/ install as vilt_fast.*, which a type checker cannot know: it gets a tree of links.
# user_code.py is code as users write it, and what it must be typed as.
types: .venv/.dev
	@rm -rf build/types && mkdir -p build/types/vilt_fast
	@ln -s $(CURDIR)/vilt_fast/* $(CURDIR)/kernels $(CURDIR)/reference $(CURDIR)/bench build/types/vilt_fast/
	@ln -s $(CURDIR)/tests/types/user_code.py build/types/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p vilt_fast
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache user_code.py

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

report: .venv/.dev
	$(BIN)/python -m vilt_fast.bench.report

clean:
	rm -rf .venv .venv-triton36 build dist demo.png vilt_fast.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# The empty files below say that an install finished; a changed pin or dependency makes them stale.
.venv/.made:
	@command -v "$(PYTHON)" >/dev/null || { echo "No '$(PYTHON)' on the PATH: install Python 3.10 or newer, or name one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "vilt_fast needs Python 3.10 or newer, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Name a newer one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	@touch $@

.venv/.run: .venv/.made constraints.txt pyproject.toml setup.py
	$(INSTALL) --editable .
	@touch $@

.venv/.dev: .venv/.made constraints.txt pyproject.toml setup.py
	$(INSTALL) --editable ".[dev]"
	@touch $@ .venv/.run

.venv-triton36/.dev: .venv/.made constraints.txt pyproject.toml setup.py
	"$(PYTHON)" -m venv .venv-triton36
	sed -e 's/^triton==.*/triton==3.6.0/' -e 's/^numpy==.*/numpy<2.4/' constraints.txt >.venv-triton36/constraints.txt
	.venv-triton36/bin/python -m pip install --disable-pip-version-check --no-input \
	    --constraint .venv-triton36/constraints.txt --editable ".[test]"
	@touch $@
