PYTHON ?= python3
BIN := .venv/bin

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

demo: .venv/ready ## the three scripts on a real Kafka, end to end
	@$(BIN)/python tests/demo.py

broker: .venv/ready ## a real Kafka on localhost:9092 until Ctrl-C; ARGS=--zookeeper for an older one
	@$(BIN)/python tests/broker.py $(ARGS)

test: lint ## style, types and tests
	$(BIN)/python -m pytest

stress: .venv/ready ## brokers killed under load, many more random moments, millions of events, a secured Kafka
	$(BIN)/python -m pytest -m stress -n 1

windows: .venv/ready ## the Windows tests, on a Windows Python under Wine; Debian or Ubuntu, as root
	@$(BIN)/python tests/windows/wine.py
	$(BIN)/python -m pytest -n 3 tests/windows

soak: .venv/ready ## twitter-stream.py under faults, kills and failing connects, then a day of a million tweets; ARGS=--help
	@$(BIN)/python tests/soak.py $(ARGS)

bench: .venv/ready ## measure the scripts against their alternatives; ARGS=--help
	@$(BIN)/python tests/bench.py $(ARGS)

picture: .venv/ready ## draw docs/demo.svg from what the demo prints
	@$(BIN)/python tests/demo.py > .venv/demo.txt 2>&1
	@$(BIN)/python tests/picture.py < .venv/demo.txt > docs/demo.svg

lint: .venv/ready ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/mypy --platform win32 *.py

clean: ## remove what the other targets made
	rm -rf .venv .windows .mypy_cache .pytest_cache .ruff_cache __pycache__ tests/__pycache__ tests/windows/__pycache__

.venv/ready: requirements.txt tests/requirements.txt
	@$(PYTHON) tests/environment.py

.PHONY: help demo broker test stress windows soak bench picture lint clean
