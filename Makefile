# Two commands are all that is needed: `make run` and `make test`. Both set up what is missing.
.DEFAULT_GOAL := help
.PHONY: help run test test-whole check format sample bench lock clean
SHELL := /bin/bash
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH VIRTUAL_ENV

PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/quickstart.yml
WITHOUT_ENGINE := configs/simulated-instances.yml

run: .venv/ready ## set up, measure the quickstart on a real engine, write its report
	@config=$(CONFIG); \
	if [ "$$config" = configs/quickstart.yml ] && \
			! $(BIN)/python -m fmgauge.emulator.llamacpp_server --check; then \
		config=$(WITHOUT_ENGINE); \
		echo "So simulated servers are measured instead, as $$config has them: no latency is real."; \
	fi; \
	$(BIN)/fmgauge run $$config $(ARGS); status=$$?; [ $$status -eq 3 ] || exit $$status

test: .venv/ready ## set up and run the tests, in under three minutes
	@$(BIN)/python -m pytest $(ARGS)

test-whole: .venv/ready ## run what takes longer: whole runs, kills, every example of a property
	@$(BIN)/python -m pytest -m "whole or hypothesis" --hypothesis-profile=whole $(ARGS)

check: .venv/ready ## format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: .venv/ready ## put the code into the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

sample: .venv/ready ## measure the quickstart and keep its report as results/sample
	@$(MAKE) --no-print-directory run
	@run=$$(ls -d results/quickstart-* | tail -n 1); mkdir -p results/sample; \
		cp $$run/{report.md,config.yaml,metrics.csv,decision.json,*.png} results/sample/

bench: .venv/ready ## measure the load engine beside its peers, then the limits of make run
	@$(BIN)/python benchmarks/engine.py --page docs/performance.md $(ARGS)
	@$(BIN)/python benchmarks/steady.py
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/spine.py

lock: .venv/ready ## compile requirements.txt anew from pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --upgrade --quiet \
		--custom-compile-command "make lock" --output-file requirements.txt

clean: ## remove the environment and caches; results stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/ready: requirements.txt pyproject.toml
	@echo "Setting up .venv (the first time takes about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fmgauge needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || \
		{ echo "No venv module: on Debian or Ubuntu, apt-get install python3-venv"; exit 1; }
	@[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
