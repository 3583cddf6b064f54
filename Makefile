# `make demo` and `make test` need Python 3.11 to 3.13 and make; they set up everything else in .venv.
VENV := .venv
PYTHON := $(VENV)/bin/python
DOCS_VENV := .venv-docs
DEMO_OUT := runs/demo
# Files side by side; each process takes about 4 GB.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: setup demo test test-all lint format docs
.DEFAULT_GOAL := setup

setup: $(VENV)/.done

$(VENV)/.done: requirements.txt
	@./setup.sh $(VENV) requirements.txt "about 700 MB"
	@touch $@

demo: setup
	@$(PYTHON) -m cvsa_jax.demo --out=$(DEMO_OUT)

# The tests of seconds, of every module, their programs compiled without optimisation.
test: setup
	@JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTHON) -m pytest $(PARALLEL) -m "not slow"

# Every test, as programs are compiled for users: also whole processes, the commands of the documentation, the benchmarks.
test-all: setup
	@$(PYTHON) -m pytest $(PARALLEL)

lint: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(VENV)/bin/lint-imports

format: setup
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

docs: $(DOCS_VENV)/.done
	@$(DOCS_VENV)/bin/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html
	@echo "the site: docs/_build/html/index.html"

$(DOCS_VENV)/.done: docs/requirements.txt
	@./setup.sh $(DOCS_VENV) docs/requirements.txt
	@touch $@
