# Every target sets up .venv by itself. `make` alone says what there is.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup demo quick test campaigns plants bench check clean clean-data
.DELETE_ON_ERROR:

# The stages of dvc.yaml call `python`: it has to be the one of .venv.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
READY := .venv/.ready

help: ## Say what there is
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

$(READY): pyproject.toml .ci/setup
	@.ci/setup

setup: $(READY) ## Make .venv with all that the others need, as they do by themselves

demo: $(READY) ## Run the whole pipeline as params.yaml says: the demo, on a CPU, in minutes
	@potstill repair && dvc repro && echo && potstill sql -c "$$METRICS" \
		&& echo "make demo: done in $$SECONDS s. The report: $(CURDIR)/data/report/index.html"

define METRICS
select checkpoint, round(100 * greedy, 1) as "greedy, %",
round(100 * avg_at_k, 1) as "avg@k, %", round(100 * pass_at_k, 1) as "pass@k, %", k, prompts,
round(mean_length, 1) as "tokens", round(validation_kl, 4) as "validation KL, nats"
from read_json_auto('shards://data/metrics/*.json') order by checkpoint = 'teacher' desc, checkpoint
endef
export METRICS

WORKERS := 2

quick: $(READY) ## Lint and the quick tests, in a minute: what to wait for while you work
	@ruff check .
	@ruff format --check .
	@lint-imports --no-logo --no-cache
	@OMP_NUM_THREADS=1 pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test: $(READY) ## Run every test that this machine can run (WORKERS=2 processes of one thread each)
	@OMP_NUM_THREADS=1 pytest -q -n $(WORKERS) --dist loadfile $(if $(shell nvidia-smi 2>/dev/null),,-m "not gpu")

campaigns: $(READY) ## Run every trial of the fuzzing, killing and power-cut tests, of which `make test` runs one in twenty
	@POTSTILL_CAMPAIGN=full OMP_NUM_THREADS=1 pytest -q -n $(WORKERS) -m "campaign and not gpu" --timeout 7200

plants: $(READY) ## Plant each bug of tests/plants, and see that the tests find it
	@python -m tests.planted_bugs

bench: $(READY) ## Measure what the README claims, each against a baseline of the same run, on two cores
	@failed=; for claim in head train_step live scoring shards packing; do echo; echo "benchmarks.$$claim"; \
		[ $$claim != live ] || python -c 'import trl' 2>/dev/null || { echo "left out: TRL is not installed"; continue; }; \
		python -m benchmarks.$$claim --check || failed="$$failed $$claim"; done; \
		[ -z "$$failed" ] || { echo "make bench: missed a bar:$$failed"; exit 1; }

check: $(READY) ## Run the linters, the contract of imports and the type checker
	@ruff check .
	@ruff format --check .
	@lint-imports --no-logo --no-cache
	@pyright

clean: ## Remove .venv and caches; data, finished shards and DVC's cache stay
	@rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-data: ## Remove all that was ever made here (SURE=yes): data, finished shards, training states, DVC's cache
	@du -shc data .potstill/store .potstill/training .dvc/cache 2>/dev/null | sed 's/^/make clean-data: /' || true
	@[ "$(SURE)" = yes ] || { echo "make clean-data: nothing is removed without SURE=yes; all of it would have to be computed again"; exit 1; }
	@rm -rf data .potstill/store .potstill/training .dvc/cache .dvc/tmp
