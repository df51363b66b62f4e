# Everything that is done to this repository, by name. `make` alone lists it.
#
# Two commands need nothing but Python 3.11 or 3.12 on Linux: `make run` and `make test`. Each first installs what
# it lacks (tools/setup.sh), which takes a moment only the first time.

SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := .venv/bin
# `uv` as tools/setup.sh left it: on the PATH, or in .tools where there is none that is new enough.
UV = $(or $(wildcard .tools/bin/uv),uv)
CODE := serving operator loadtest tools tests

# The hosted API of the demonstration. With OPENAI_API_KEY set it is the real one, otherwise a simulation. A key of
# Merit Order's own, which a client of it may have in that variable, is none of OpenAI's.
HOSTED ?= $(if $(filter-out mo-%,$(OPENAI_API_KEY)),examples/hosted/openai.yaml)

.PHONY: help setup setup-run run test unit e2e bench-dispatch eval-spillover lint fmt model clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install everything that development needs: uv, the locked environment, libnuma1.
	@tools/setup.sh dev

setup-run:
	@tools/setup.sh run

# `exec`, so that Ctrl-C and a `kill` reach the platform itself, which then stops its parts in order.
run: setup-run ## Start the platform on this machine and show it at work; Ctrl-C stops it.
	@exec $(BIN)/meritorder up --demo -f examples/quickstart $(if $(HOSTED),-f $(HOSTED))

test: setup ## Run all tests, with the real Ray Serve and the real vLLM engine.
	@$(BIN)/pytest

unit: setup ## Run only the fast tests.
	@$(BIN)/pytest tests/unit

e2e: setup ## Run only the tests on a whole platform.
	@$(BIN)/pytest -m e2e

bench-dispatch: setup ## Measure the CPU time that a request costs in the ingress; a minute.
	@$(BIN)/python -m meritorder_loadtest.bench_dispatch

eval-spillover: setup ## Measure what spills over to the hosted API, on a platform of its own; three minutes.
	@$(BIN)/python -m meritorder_loadtest.eval_spillover

# Ordered from what fails fastest. `uv lock --check` asks whether uv.lock still follows from pyproject.toml.
lint: setup ## Check style, types, the direction of imports, the layout and the lock file.
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/python tools/check_layout.py
	@$(BIN)/lint-imports
	@$(UV) lock --check
	@$(BIN)/mypy $(CODE)

fmt: setup ## Format the code, and mend what can be mended automatically.
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

model: setup ## Train the tiny model again, from tools/faq.yaml; a few minutes.
	@$(BIN)/python tools/train_tiny_model.py

clean: ## Remove caches and builds; the environment (.venv, .tools) stays.
	@rm -rf dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
