# faceshards: `make shards` builds a dataset, `make test` tests the project; each target sets up what it needs.
PYTHON ?= $(shell for p in .venv/bin/python python3.11 python3.12 python3.10 python3; do $$p -c $(RIGHT) 2>/dev/null && echo $$p && break; done)
RIGHT := 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
DATASET ?= synthetic
DATA_ROOT ?= data/raw
OUT ?= data/shards/$(DATASET)
RUN ?= data/runs/$(DATASET)
RECIPE ?= $(DATASET)
DEVICES ?= 1
SETS ?= $(wildcard $(DATA_ROOT)/$(DATASET)/*.bin)
EVAL ?= data/eval/$(DATASET)
TO ?= recordio
ARGS ?=
BIN := .venv/bin
SHELL := /bin/bash
# What is installed for a target, and the stamp that says it is. MXNet, the oracle of the tests, holds numpy below 2.
EXTRAS_base :=
EXTRAS_manifest := [manifest]
EXTRAS_train := [train]
EXTRAS_eval := [train,eval]
EXTRAS_docs := [docs]
EXTRAS_dev := [all,dev]
INSTALLED = .venv/installed-$(VERSION)
.DEFAULT_GOAL := help
.PHONY: help install shards manifest export train sets eval docs lint test test-isa smoke bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED)-dev ## set up .venv with everything (again only when setup.cfg changed, or another PYTHON is chosen)

$(INSTALLED)-%: setup.cfg setup.py
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c $(RIGHT) 2>/dev/null || { echo "faceshards needs Python 3.10, 3.11 or 3.12; $(if $(PYTHON),$(PYTHON) is not one,there is none on the PATH): choose with make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt-get install python$(VERSION)-venv" >&2; exit 1; }
	@[ $* != dev ] || $(PYTHON) .ci/libquadmath.py
	@[ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$(VERSION)" ] || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --disable-pip-version-check -e '.$(EXTRAS_$*)'
	@touch $@ $(if $(filter dev,$*),$(INSTALLED)-base $(INSTALLED)-manifest $(INSTALLED)-train $(INSTALLED)-eval $(INSTALLED)-docs) $(if $(filter manifest docs,$*),$(INSTALLED)-base) $(if $(filter eval,$*),$(INSTALLED)-base $(INSTALLED)-train)

shards: $(INSTALLED)-base ## build DATASET (default: synthetic, rendered on the spot) into data/shards/DATASET
	$(BIN)/faceshards build $(DATASET) --data-root $(DATA_ROOT) --out $(OUT) $(ARGS)

manifest: $(INSTALLED)-manifest ## summarise the shards of DATASET
	$(BIN)/faceshards manifest summary $(OUT)

# OUT is the export's here (data/exports/DATASET-TO); the shards lie where `make shards` puts them by itself.
export: OUT = data/exports/$(DATASET)-$(TO)
export: $(INSTALLED)-base ## write the shards of DATASET as TO (recordio, im2rec, folder, webdataset) into OUT
	$(BIN)/faceshards export-data data/shards/$(DATASET) $(OUT) --to $(TO) $(ARGS)

train: $(INSTALLED)-train ## train by RECIPE (default: DATASET) on its shards with DEVICES ranks; goes on where it stopped
	$(BIN)/faceshards train $(RECIPE) --data $(OUT) --out $(RUN) --data-root $(DATA_ROOT) --devices $(DEVICES) --resume $(ARGS)

sets:
	@[ -n "$(strip $(SETS))" ] || { echo "no verification set: put .bin files into $(DATA_ROOT)/$(DATASET), or say SETS='a.bin b.bin'; faceshards make-bin makes one of pictures and pairs" >&2; exit 1; }

eval: sets $(INSTALLED)-eval ## measure the run of DATASET on its verification SETS, report in EVAL
	$(BIN)/faceshards eval --model $(RUN) $(foreach set,$(SETS),--set $(set)) --out $(EVAL) $(ARGS)

docs: $(INSTALLED)-docs ## make the site of docs/ in build/site; a broken link or a warning fails
	$(BIN)/mkdocs build --strict

lint: $(INSTALLED)-dev ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(INSTALLED)-dev ## run the tests; FAST=1 leaves out those that take seconds
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(if $(FAST),-m "not slow") $(ARGS)

test-isa: $(INSTALLED)-dev ## run the fast numeric tests as on an older processor
	DNNL_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL" $(BIN)/python -m pytest -m "numeric and not slow" -n auto --maxprocesses 4 $(ARGS)

smoke: $(INSTALLED)-dev ## build the wheel, and use it in a fresh environment and an empty folder
	.ci/smoke

bench: $(INSTALLED)-dev ## run every benchmark at a size of minutes
	for script in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

clean: ## remove what make made, data/ apart
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
