# `make demo` and `make test` need Python 3.11 or newer and, the first time, a network for packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean

# Installs the package and what the targets need; does nothing while setup.cfg stays the same.
$(READY): setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY)
	mkdir -p out
	$(BIN)/python -m kerasdiff \
	  "a red circle above a blue square on a yellow background" \
	  "a large green heart on a pink background" \
	  "a white star to the left of an orange ring on a purple background" \
	  "a yellow triangle below a black diamond on a white background" \
	  --model=tiny --batch_size=4 --seed=7 --output=out/demo.png --grid=out/demo_grid.png
	@echo "Look at out/demo_grid.png"

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/embedded_quality.py
	$(BIN)/python benchmarks/embedded_speed.py

clean:
	rm -rf $(VENV) out build *.egg-info
