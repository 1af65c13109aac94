# `make` lists the targets. Each sets up .venv itself when it needs it.
.DEFAULT_GOAL := help
.PHONY: help run test check format lock kafka docs screenshots bench chaos clean setup

BIN := .venv/bin
CODE := $(wildcard engine streams domain tables agents cli examples tests bench)
# uv is used for nothing but the lock, in an environment of its own.
UV_VERSION := 0.13.9

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-11s %s\n", $$1, $$2 }'

run: ## set everything up and run on the embedded log with real orders (PORT=, DATA=)
	@./run

test: ## every test that can run here (ARGS= go to pytest)
	@./test $(ARGS)

check: setup ## formatter, linter, types, dependency rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/unit/test_architecture.py

format: setup ## format and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## pin the newest allowed versions of all packages, with hashes, into the two lock files
	@test -x .venv-lock/bin/uv || { python3 -m venv .venv-lock && .venv-lock/bin/pip install -q uv==$(UV_VERSION); }
	$(LOCK) --group build --output-file requirements.lock pyproject.toml
	$(LOCK) --group build --group dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

# Universal: one file for every platform and every Python from 3.11 on.
LOCK := .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header

kafka: setup ## a real single-node Kafka in the foreground, data kept in .kafka/ (PORT=9092; Java + Maven)
	@$(BIN)/python -m tests.kafka --port $(or $(PORT),9092) --dir .kafka

docs: setup ## the parts of the documents that are made from the code: settings, folders
	@$(BIN)/python -m tests.documents

screenshots: setup ## the pictures of the web page in docs/screenshots, on the real orders (Chromium)
	@$(BIN)/python -m tests.browser.screenshots

bench: setup ## the benchmarks, beside the peers, on a real Kafka (ARGS=)
	@$(BIN)/python -m bench.run $(ARGS)

chaos: setup ## the long fault run on a real Kafka (ARGS=)
	@ORDERS_STANDSTILL_EXAMPLES=300 ORDERS_FAILURE_EXAMPLES=300 TEST_LIMIT_S=3600 $(BIN)/python -m pytest -q \
		tests/integration/test_engine_standstill_properties.py tests/integration/test_order_under_failure.py >&2
	@$(BIN)/python -m tests.chaos.disk_long
	@$(BIN)/python -m tests.chaos.long $(ARGS)

clean: ## remove environments and caches; data/ and .kafka/ stay
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@sh ops/setup.sh dev
