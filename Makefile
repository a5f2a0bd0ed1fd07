# Set-up, tests and the main jobs. `make` alone lists them.
PYTHON ?=
TORCH_INDEX ?=
TASKS ?=
METHODS ?=
KEEP ?=
LR ?=
SEEDS ?=
MODEL ?=
DATA_DIR ?=
ROWS ?=
JOBS ?=
FULL ?=
SWEEP ?=

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed-run
READY_DEV := $(VENV)/.installed-dev
READY_SLURM := $(VENV)/.installed-slurm

# A misspelt variable would otherwise change nothing, silently.
VARIABLES := PYTHON TORCH_INDEX TASKS METHODS KEEP LR SEEDS MODEL DATA_DIR ROWS JOBS FULL SWEEP
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(VARIABLES) MAKE% MFLAGS -*,$(GIVEN))
ifneq ($(strip $(UNKNOWN)),)
$(error unknown variable $(UNKNOWN); known: $(VARIABLES))
endif

# "a b", "a,b" and "a, b" are one Hydra sweep: a,b
comma := ,
space := $(subst ,, )
listed = $(subst $(space),$(comma),$(strip $(subst $(comma),$(space),$(1))))
# $(call sweep,key,VARIABLE): key=a,b where VARIABLE is given
sweep = $(if $(strip $($(2))),$(1)=$(call listed,$($(2))))
yes = $(filter-out 0 no false,$(1))

GRID := experiment=$(if $(call yes,$(FULL)),sweep_glue_full,sweep_glue) \
	$(call sweep,task,TASKS) $(call sweep,method,METHODS) $(call sweep,keep_frac,KEEP) $(call sweep,lr,LR) \
	$(call sweep,seed,SEEDS) $(call sweep,model,MODEL) $(call sweep,task.rows,ROWS)
AT_ONCE := $(if $(strip $(JOBS)),hydra.launcher.n_jobs=$(strip $(JOBS)))

.DEFAULT_GOAL := help
.PHONY: help install install-dev install-slurm demo sweep-glue test test-slow test-slurm lint bench clean sync dashboard

help: ## list the targets
	@printf 'keepfrac: make TARGET [VARIABLE=...]\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' Makefile
	@printf '\n  PYTHON=<interpreter>  TORCH_INDEX=<index that torch comes from>  JOBS=<runs at once>\n'
	@printf '  sweep-glue: TASKS METHODS KEEP LR SEEDS MODEL DATA_DIR ROWS JOBS, lists as a,b; FULL=1 for the whole grid\n'

install: $(READY) ## set up .venv with the pinned dependencies (once; again when they change)
	@printf 'keepfrac: .venv is ready. Type: source $(VENV)/bin/activate\n'

install-dev: $(READY_DEV)

$(READY): pyproject.toml constraints.txt requirements-data.txt
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' .ci/install.sh run

$(READY_DEV): $(READY)
	@.ci/install.sh dev

install-slurm: $(READY_SLURM) ## submitit, which hardware=slurm_cpu and slurm_gpu need

$(READY_SLURM): $(READY)
	@.ci/install.sh slurm

demo: $(READY) ## the main job: four modes on real sentences, then the report (the minutes are printed first)
	@sed -n 's/^# *[Tt]ime: */Expected time: /p' conf/experiment/demo.yaml
	@status=0; $(RUN) -m src.main experiment=demo $(AT_ONCE) || status=$$?; \
	if [ -d multirun/demo ]; then $(RUN) -m src.report multirun/demo || status=$$?; fi; exit $$status

sweep-glue: $(READY) ## the sweep over GLUE; typed again it goes on where it stopped
	$(if $(DATA_DIR),GLUE_DATA='$(DATA_DIR)' )$(RUN) -m src.main $(GRID) $(AT_ONCE)

test: $(READY_DEV) lint ## set up, check and test everything (at most 15 minutes on 2 cores)
	$(RUN) -m pytest

test-slow: $(READY_DEV) ## the tests that `make test` leaves out for their length
	$(RUN) -m pytest -m slow

test-slurm: $(READY_DEV) $(READY_SLURM) ## sweeps on a private Slurm of one node (at most 5 minutes; skipped without Slurm)
	$(RUN) -m pytest tests/slurm -m slurm

lint: $(READY_DEV) ## ruff, the layers, types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(RUN) -m mypy

bench: $(READY_DEV) ## the measurements of tests/bench
	$(RUN) -m pytest tests/bench -o 'python_files=bench_*.py test_*.py' -o addopts= --timeout=0 -s

sync: $(READY) ## upload the runs that W&B's server has not got yet; SWEEP=multirun/<name>: that sweep's alone
	$(RUN) -m src.sync $(if $(SWEEP),"$(SWEEP)")

dashboard: $(READY) ## save the W&B workspace of the project; SWEEP=<name>: of that sweep
	$(RUN) -m src.dashboard $(if $(SWEEP),--sweep "$(SWEEP)")

clean: ## remove .venv and the caches; what is under multirun/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build keepfrac.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
