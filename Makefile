PYTHON ?= python3
# A Python that is named, as in `make test PYTHON=python3.13`, has a folder of its own
VENV := $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

demo: packages ## the three scripts on a real Kafka, end to end
	@$(BIN)/python demo/demo.py

broker: packages ## a real Kafka on localhost:9092 until Ctrl-C; ARGS=--zookeeper for an older one
	@$(BIN)/python demo/broker.py $(ARGS)

test: lint ## style, types and tests; PYTHON=python3.12 for another Python
	$(BIN)/python -m pytest

versions: packages ## the tests of what differs between versions of Python
	$(BIN)/python -m pytest -m "versions and not stress"

stress: packages ## brokers killed under load, many more random moments, millions of events, a secured Kafka
	$(BIN)/python -m pytest -m stress -n 1

windows: packages ## the Windows tests, on a Windows Python under Wine; Debian or Ubuntu, as root
	@$(BIN)/python tests/windows/wine.py
	$(BIN)/python -m pytest -n 3 tests/windows

soak: packages ## twitter-stream.py under faults, kills and failing connects, on a quiet stream, and with a million tweets; ARGS=--help
	@PYTHONPATH=demo $(BIN)/python tests/soak.py $(ARGS)

mixture: packages ## random files published under faults, read back by kcat and compared; ARGS="--minutes 30 --seed 7"
	@PYTHONPATH=demo $(BIN)/python tests/mixture.py $(ARGS)

bench: packages ## measure the scripts against their alternatives; ARGS=--help
	@PYTHONPATH=demo $(BIN)/python tests/bench.py $(ARGS)

picture: packages ## draw docs/demo.svg from a run of the three scripts
	@$(BIN)/python demo/picture.py > $(VENV)/demo.svg
	@mv $(VENV)/demo.svg docs/demo.svg

lint: packages ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 *.py streaming

clean: ## remove what the other targets made
	rm -rf .venv* .windows .mypy_cache .pytest_cache .ruff_cache
	rm -rf __pycache__ streaming/__pycache__ demo/__pycache__ tests/__pycache__ tests/windows/__pycache__

packages:
	@$(PYTHON) demo/environment.py $(VENV)

.PHONY: help packages demo broker test versions stress windows soak mixture bench picture lint clean
