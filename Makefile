# `make demo` and `make test` each set everything up by themselves, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt

# What is installed is compiled when it is first imported, and not again for each of a thousand processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test benchmarks docs lint format types clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.installed ## make .venv with everything a developer needs

# Without compiling all that is installed, of which little is imported: it took longer than the rest.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Normstream needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

demo: setup ## watch a server adapt to corrupted photographs (SERVE=1 leaves it running)
	$(BIN)/normstream demo $(if $(SERVE),--serve)

test: setup ## run all tests
	$(BIN)/pytest --numprocesses auto --dist worksteal $(ARGS)

benchmarks: setup ## measure speed and memory (on a machine that does nothing else)
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/storing.py

docs: setup ## rewrite the tables of the pages about members
	$(BIN)/python docs/members/tables.py

lint: setup ## style of code and of the Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/*.Dockerfile

format: setup ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy follows folders, not the build's mapping: give it the installed layout as links.
types: setup ## mypy, strict
	mkdir -p $(VENV)/layout/normstream
	ln -sfn $(CURDIR)/adaptation $(CURDIR)/service $(CURDIR)/clients $(VENV)/layout/normstream/
	MYPYPATH=$(VENV)/layout $(BIN)/mypy -p normstream
	cd benchmarks && MYPYPATH=../$(VENV)/layout ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache *.py

clean: ## remove what make built
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
