# Everything runs in a virtual environment that is made here when it is missing.
#   make demo PYTHON=python3.12 VENV=/tmp/venv
PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PYTEST_ARGS ?=
DEMO_DIR ?= runs/demo
DEMO_ARGS ?= --data builtin --model bilstm_attention

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --cov=attnjax
# Most of a quick test is compiling, for which unoptimised machine code takes half the time. `make test-all` optimises.
UNOPTIMISED := XLA_FLAGS="$(strip $(XLA_FLAGS) --xla_backend_optimization_level=0)"
# Tests over a mesh run by themselves: several simulated devices slow the others down.
MESH := ATTNJAX_TEST_DEVICES=8 $(PYTEST) --cov-append --cov-fail-under=90
SHELL_FILES := .ci/run $(shell find tpu_scripts -name '*.sh')
comma := ,

.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench lint format docs lock hooks clean
# The stamps are made by a pattern rule; make would delete them as intermediate files.
.SECONDARY:

help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.extras-train  ## Train the builtin text classification; compare with its baseline; write a report.
	$(BIN)/python -m train.text_classification $(DEMO_ARGS) --run-dir $(DEMO_DIR)

test: $(VENV)/.extras-train+test  ## Run the tests that take less than minutes, with coverage.
	$(UNOPTIMISED) $(PYTEST) -m "not slow and not mesh" --cov-report= $(PYTEST_ARGS)
	$(UNOPTIMISED) $(MESH) -m "not slow and mesh" $(PYTEST_ARGS)

test-all: $(VENV)/.extras-train+test $(VENV)-peers/.extras-test+peers  ## Run every test, with 500 drawn cases each, and the peers' suites.
	HYPOTHESIS_PROFILE=full $(PYTEST) -m "not mesh" --cov-report= $(PYTEST_ARGS)
	$(MESH) -m mesh $(PYTEST_ARGS)
	$(VENV)-peers/bin/python -m pytest -n $(JOBS) tests/peers $(PYTEST_ARGS)

bench: $(VENV)/.extras-train+test  ## Measure speed, memory and block classification on this CPU.
	$(BIN)/python -m attnjax.bench.cpu speed stats memory blocks

lint: $(VENV)/.extras-train+test+dev  ## Check style, formatting, types and shell scripts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tpu_scripts/kubernetes/manifest.py
	$(BIN)/shellcheck --external-sources --source-path=SCRIPTDIR $(SHELL_FILES)

format: $(VENV)/.extras-train+test+dev  ## Mend style and formatting in place.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.extras-train  ## Write docs/api.md from the docstrings.
	$(BIN)/python docs/make_api.py

lock: $(VENV)/bin/python  ## Resolve every extra anew for each Python in PYTHONS, and write constraints/.
	$(BIN)/python .ci/lock.py $(PYTHONS)

hooks: $(VENV)/.extras-train+test+dev  ## Install the pre-commit hooks.
	$(BIN)/pre-commit install

clean:  ## Remove the virtual environment and the caches; runs/ stays.
	rm -rf $(VENV) $(VENV)-peers .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist

%/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  (3, 11) <= v < (3, 14) or sys.exit("attnjax needs Python 3.11 to 3.13; $(PYTHON) is %d.%d: give make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $* || { rm -rf $*; exit 1; }

# `.extras-train+test` says that the package was installed with the extras train and test.
$(VENV)/.extras-%: pyproject.toml constraints/main.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints/main.txt --editable '.[$(subst +,$(comma),$*)]'
	@touch $@

# tokamax and the training extra cannot be installed together (see pyproject.toml).
$(VENV)-peers/.extras-%: pyproject.toml constraints/peers.txt | $(VENV)-peers/bin/python
	$(VENV)-peers/bin/python -m pip install --quiet --constraint constraints/peers.txt --editable '.[$(subst +,$(comma),$*)]'
	@touch $@
