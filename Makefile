# `make demo` and `make test` work on a machine that has only Python 3.11, git and make.
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
ACTIVATE := . $(VENV)/bin/activate
REPORT := results/tiny/report.html

.PHONY: demo test test-long lint format clean

demo: $(VENV)/ready
	$(ACTIVATE) && snakemake all
	@echo "Look at $(REPORT)"

test: $(VENV)/ready lint
	$(ACTIVATE) && python -m pytest tests -m "not long"

test-long: $(VENV)/ready lint
	$(ACTIVATE) && python -m pytest tests

lint: $(VENV)/ready
	$(ACTIVATE) && ruff check . && ruff format --check . && mypy && snakefmt --check Snakefile rules

format: $(VENV)/ready
	$(ACTIVATE) && ruff check --fix . && ruff format . && snakefmt Snakefile rules

# The environment: pinned, CPU torch where there is no GPU, byte-code compiled once.
$(VENV)/ready: envs/requirements-train.txt envs/requirements-dev.txt envs/install.sh
	bash envs/install.sh $(PYTHON) $(VENV) envs/requirements-train.txt envs/requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) results .snakemake
