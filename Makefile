# faceshards: `make shards` builds a dataset, `make test` tests the project; both set everything up first.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
DATASET ?= synthetic
DATA_ROOT ?= data/raw
OUT ?= data/shards/$(DATASET)
ARGS ?=
BIN := .venv/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install shards manifest lint test bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: .venv/installed ## set up .venv (again only when setup.cfg changed)

.venv/installed: setup.cfg setup.py
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	  || { echo "faceshards needs Python 3.10, 3.11 or 3.12; $(if $(PYTHON),'$(PYTHON)' is not one,none is on the PATH): make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks venv: apt-get install python3-venv" >&2; exit 1; }
	@# MXNet's library is linked to libquadmath; Debian's minimal images lack it.
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libquadmath.so.0")' 2>/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq libquadmath0; } \
	  || { echo "MXNet needs the system library libquadmath: apt-get install libquadmath0" >&2; exit 1; }
	@[ -x $(BIN)/python ] && $(BIN)/python -c 'import sys; sys.exit("$(origin PYTHON)" != "file" and sys.version_info[:2] != tuple(map(int, "'"$$($(PYTHON) -c 'import sys; print(*sys.version_info[:2])')"'".split())))' \
	  || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

shards: install ## build DATASET (default: synthetic, rendered on the spot) into data/shards/DATASET
	$(BIN)/faceshards build $(DATASET) --data-root $(DATA_ROOT) --out $(OUT) $(ARGS)

manifest: install ## summarise the shards of DATASET
	$(BIN)/faceshards manifest summary $(OUT)

lint: install ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install ## run the tests
	$(BIN)/python -m pytest

bench: install ## run every benchmark at a size of minutes
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean: ## remove what make made, data/ apart
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
