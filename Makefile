# faceshards: `make shards` builds a dataset, `make test` tests the project; both set everything up first.
PYTHON ?= $(shell for p in .venv/bin/python python3.11 python3.12 python3.10 python3; do $$p -c $(RIGHT) 2>/dev/null && echo $$p && break; done)
RIGHT := 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := .venv/installed-$(VERSION)
DATASET ?= synthetic
DATA_ROOT ?= data/raw
OUT ?= data/shards/$(DATASET)
RUN ?= data/runs/$(DATASET)
RECIPE ?= $(DATASET)
DEVICES ?= 1
SETS ?= $(wildcard $(DATA_ROOT)/$(DATASET)/*.bin)
EVAL ?= data/eval/$(DATASET)
ARGS ?=
BIN := .venv/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install shards manifest train eval lint test bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## set up .venv (again only when setup.cfg changed, or another PYTHON is chosen)

$(STAMP): setup.cfg setup.py
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c $(RIGHT) 2>/dev/null || { echo "faceshards needs Python 3.10, 3.11 or 3.12; $(if $(PYTHON),$(PYTHON) is not one,there is none on the PATH): choose with make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt-get install python$(VERSION)-venv" >&2; exit 1; }
	@# MXNet's library is linked against libquadmath, which a minimal Debian lacks.
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libquadmath.so.0")' 2>/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq libquadmath0; } \
	  || { echo "MXNet needs the system library libquadmath: apt-get install libquadmath0" >&2; exit 1; }
	@[ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$(VERSION)" ] || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

shards: install ## build DATASET (default: synthetic, rendered on the spot) into data/shards/DATASET
	$(BIN)/faceshards build $(DATASET) --data-root $(DATA_ROOT) --out $(OUT) $(ARGS)

manifest: install ## summarise the shards of DATASET
	$(BIN)/faceshards manifest summary $(OUT)

train: install ## train by RECIPE (default: DATASET) on its shards with DEVICES ranks; goes on where it stopped
	$(BIN)/faceshards train $(RECIPE) --data $(OUT) --out $(RUN) --devices $(DEVICES) --resume $(ARGS)

eval: install ## measure the run of DATASET on its verification SETS, report in EVAL
	$(BIN)/faceshards eval --model $(RUN) $(foreach set,$(SETS),--set $(set)) --out $(EVAL) $(ARGS)

lint: install ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install ## run the tests
	$(BIN)/python -m pytest

bench: install ## run every benchmark at a size of minutes
	for script in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

clean: ## remove what make made, data/ apart
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
