# make demo    phantom slides to trained classifier, honest numbers and heatmaps (about 10 minutes on two cores)
# make test    the tests
# make check   ruff, mypy, import direction
# make bench   speed against baselines, measured in the same run
# make accuracy   how well heads and settings do on labelled data (hours)
# make bench-gpu  speed of what needs a CUDA GPU
#
# .docs/measured.md says what bench and accuracy found, script by script.
# Each target makes .venv and installs what it needs by itself, once.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Bytecode is kept whatever the shell says: each of many short processes would compile the program anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test check bench accuracy bench-gpu clean

demo: .venv/demo.done
	$(BIN)/mil-demo --out demo

test: .venv/dev.done
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal --durations 15 --durations-min 10

check: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

bench: .venv/dev.done
	for script in tests/benchmarks/speed/bench_*.py; do $(BIN)/python $$script || exit 1; done

accuracy: .venv/dev.done
	for script in tests/benchmarks/accuracy/*.py; do $(BIN)/python $$script || exit 1; done

bench-gpu: .venv/dev.done
	for script in tests/benchmarks/speed/gpu_*.py; do $(BIN)/python $$script || exit 1; done

.venv/made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("slidemil needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; choose one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/demo.done: .venv/made pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]'
	@touch $@

.venv/dev.done: .venv/made pyproject.toml constraints.txt
	$(PIP) --editable '.[demo,dev]'
	@touch $@ .venv/demo.done

clean:
	rm -rf .venv demo .mypy_cache .ruff_cache .pytest_cache
