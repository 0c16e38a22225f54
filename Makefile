# `make demo` answers questions about pictures, `make test` runs the tests; each makes .venv by itself.
# Another Python: `make PYTHON=python3.12 demo`. Fewer or more test processes: `make JOBS=4 test`.

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt

.PHONY: help demo test lint report clean

help:
	@echo "make demo    answer questions about bundled pictures and write demo.png"
	@echo "make test    lint, then every test"
	@echo "make lint    ruff alone"
	@echo "make report  README's performance section and its plots, from the files in bench/results"
	@echo "make clean   remove .venv, builds and caches"

demo: .venv/.run
	$(BIN)/vilt-fast demo --out demo.png

# One thread a process: the pictures and models of the tests are too small to share between threads.
test: lint
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -q -n $(JOBS) --durations=10

lint: .venv/.dev
	$(BIN)/ruff check .

report: .venv/.dev
	$(BIN)/python -m vilt_fast.bench.report

clean:
	rm -rf .venv build dist demo.png vilt_fast.egg-info .pytest_cache .ruff_cache .hypothesis

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
