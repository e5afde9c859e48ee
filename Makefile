# Every target makes its own environment in .venv first, and only when something changed.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Two workers of one thread each: PyTorch's own threads would fight over the cores.
WORKERS ?= 2
OUT ?= benchmarks/results/latest
PAPER ?= results/paper

.DEFAULT_GOAL := help
.PHONY: help setup demo paper test test-ray smoke stress bench lint format tiny-bert clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | \
		awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: $(READY) ## Make the environment (.venv)

$(READY): pyproject.toml setup.py constraints.txt spafit_bench/models/fused/kernels.c
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## Nine tasks x four methods on tiny BERT, offline, in minutes
	$(BIN)/spafit-bench demo

paper: $(READY) ## BERT-large-cased, nine tasks, six methods, five seeds: days of a GPU
	$(BIN)/spafit-bench sweep paper --results $(PAPER)
	$(BIN)/spafit-bench table --results $(PAPER)
	$(BIN)/spafit-bench plot --results $(PAPER)
	$(BIN)/spafit-bench report --results $(PAPER)

test: $(READY) ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-ray: $(READY) ## Install Ray and test sweeps on a cluster of two nodes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray

smoke: $(READY) ## Nine tasks x four methods through the real command line, against stored bands; torchrun
	$(BIN)/python -m pytest -m smoke -s

stress: $(READY) ## Kill runs at random moments and check that nothing is lost (STRESS_KILLS=200)
	$(BIN)/python scripts/stress.py

lint: $(READY) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Rewrite the code in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure speed and memory against Trainer + peft (MODEL=FOLDER DATA=FOLDER)
	$(BIN)/python -m benchmarks.bench --model $(MODEL) --data $(DATA) --out $(OUT)

tiny-bert: $(READY) ## Pretrain the shipped tiny BERT again (under 20 minutes on two cores)
	$(BIN)/python -m scripts.pretrain_tiny

clean: ## Remove the environment and caches
	rm -f spafit_bench/models/fused/*.so
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
