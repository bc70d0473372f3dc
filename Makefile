# `make` alone lists the targets; `make book` and `make test` do everything, from a bare checkout on.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON      ?= python3
# Empty for the newest versions: `make test CONSTRAINTS=`.
CONSTRAINTS ?= constraints.txt
# Options for pytest, and for the long computations: `make test PYTEST="-k site"`, `make train ARGS="l96_conv --m 5"`.
PYTEST      ?=
ARGS        ?=
# Processes at a time; each has one thread, which suits tensors as small as these. nproc would count threads, not cores.
JOBS        ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)

BIN       := .venv/bin
INSTALLED := .venv/.installed
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
# Begun first, so that the last job of a run is a short one.
LONGEST   := $(wildcard $(patsubst %,notebooks/%_*.ipynb,02 05 09 12 17 04 06 16 07 10))
NOTEBOOKS := $(LONGEST) $(filter-out $(LONGEST),$(NOTEBOOKS))
EXECUTED  := $(NOTEBOOKS:%=build/executed/%)
TESTS     := $(patsubst %,tests/test_%.py,papermill site) $(LONGEST)
TESTS     += $(patsubst %,tests/%.py,test_sweeps test_nbval test_live study/test_benchmark training/test_processes test_installed)
TESTS     += $(filter-out $(TESTS),$(NOTEBOOKS) $(sort $(shell find tests -name 'test_*.py')))
# What a notebook's outputs depend on, apart from the notebook.
INPUTS    := $(wildcard constraints.txt) $(shell find assim_lib -name '*.py') $(shell find data -type f 2>/dev/null)

export OMP_NUM_THREADS ?= 1
# Hundreds of processes import the same modules: compiled once, whatever the machine's habit.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install book executed test lint lock address clean test-sets train baselines scores bench verify

help: ## list what can be made
	@echo "make <target>:"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16 | sed 's/^/  /'

install: $(INSTALLED) ## virtual environment .venv with the tested versions of everything

# The stamp keeps this from being repeated until what is to be installed changes.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@echo "==> installing into .venv ($(or $(CONSTRAINTS),newest versions)); this takes some minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(addprefix -c ,$(CONSTRAINTS)) -e '.[baselines,book,test]'
	@touch $@

book: | $(INSTALLED) ## execute every notebook that is out of date, then render the book
	+@$(MAKE) --no-print-directory --jobs=$(JOBS) executed; \
	echo "==> notebooks executed after $$SECONDS s; rendering the book (a warning is an error)"; \
	$(BIN)/python book/build_site.py build/executed/notebooks build/site; \
	echo "==> done after $$SECONDS s: open $(CURDIR)/build/site/_build/html/index.html"

executed: $(EXECUTED)

# Under another name until it is complete: a notebook that was interrupted is not up to date.
build/executed/notebooks/%.ipynb: notebooks/%.ipynb $(INPUTS) | $(INSTALLED)
	@mkdir -p $(@D) build/executing
	@echo "==> executing $<"
	@$(BIN)/papermill --no-progress-bar --cwd notebooks $< build/executing/$(@F)
	@mv build/executing/$(@F) $@

# A file's tests, and a notebook's cells, stay together; the long ones come first. Two processes more than there are
# cores: a fifth of the time tests wait, for kernels, browsers and processes that they kill.
test: lint ## lint, then all tests, those of the notebooks' committed outputs and of the rendered site included
	@echo "==> testing the library, the notebooks and the site"
	$(BIN)/pytest $(TESTS) --nbval --nbval-current-env -n $$(($(JOBS) + 2)) --dist loadfile --no-loadscope-reorder -p slowest $(PYTEST)

lint: | $(INSTALLED) ## style (ruff), types (pyright) and what imports what (import-linter)
	@echo "==> checking style, types and imports"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

# What stands in data/ was made by these. Each says how far it is, and goes on where it was interrupted.
test-sets: ## freeze the truth and the observations that everything is scored on
train: ## train one experiment, publish its checkpoint and its scores: ARGS="l96_conv --preset cpu"
baselines: ## score the classical methods on the frozen test sets
scores: ## collect all results into data/results/scores.csv
bench: ## measure what cycles, rings, simulations and trainings cost: ARGS="cycles --compiled"
verify: ## score every stored filter again, and name what has drifted: an hour; ARGS="--cycles 500" takes minutes
test-sets train baselines scores bench verify: | $(INSTALLED)
	$(BIN)/python -m assim_lib $@ $(ARGS)

lock: | $(INSTALLED) ## write constraints.txt and environment.yml from the versions in .venv
	@echo "==> locking the versions in .venv"
	$(BIN)/python .ci/lock.py

address: ## write the public address everywhere: URL=https://github.com/owner/repo; URL= takes it out
	@$(PYTHON) .ci/address.py $(if $(filter command,$(origin URL)),"$(URL)")

clean: ## remove what was built; .venv and the results of runs stay
	rm -rf build .pytest_cache .ruff_cache
