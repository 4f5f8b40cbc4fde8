# `make demo` and `make test` need Python 3.11 to 3.13 and, the first time, a network for packages.
PYTHON ?= python3
VENV ?= .venv
# Processes of `make test`; each holds TensorFlow.
WORKERS ?= 2
BIN := $(VENV)/bin
DRAWS := $(VENV)/.draws
READY := $(VENV)/.ready

.PHONY: help demo test test-all mutants lint docs notebooks dist bench clean

help:  ## what there is to make
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

# Installs the package and what drawing needs; does nothing while setup.cfg stays the same.
$(DRAWS): setup.cfg
	@echo "Installing into $(VENV): a minute or so"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[openvino]'
	touch $@

# And what the other targets need: PyTorch, Ray, KerasCV and more.
$(READY): $(DRAWS)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(DRAWS)  ## draws four prompts four times: out/demo_grid.png
	mkdir -p out
	$(BIN)/python -m kerasdiff \
	  "a red circle above a blue square on a yellow background" \
	  "a large green heart on a pink background" \
	  "a white star to the left of an orange ring on a purple background" \
	  "a yellow triangle below a black diamond on a white background" \
	  --model=tiny --batch_size=4 --seed=7 --output=out/demo.png --grid=out/demo_grid.png
	@echo "Look at out/demo_grid.png"

PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal
# Networks of gigabytes: each file in a process of its own, which leaves no memory behind.
FULL_SIZE = $(shell grep -rl --include='test_*.py' 'mark.full_size' tests)

test: $(READY)  ## runs the tests in WORKERS processes: about 20 minutes on two cores
	$(PYTEST) -m "not slow and not full_size"

test-all: test  ## the same, then those that take minutes, many more values of every argument, and networks at full size
	$(PYTEST) -m "slow and not full_size"
	$(PYTEST) --hypothesis-profile=thorough -m "not slow" tests/test_properties.py
	for file in $(FULL_SIZE); do $(BIN)/python -m pytest -m full_size $$file || exit 1; done

mutants: $(READY)  ## makes 40 lines wrong, one at a time: each time a test must fail
	$(BIN)/python benchmarks/mutants.py

lint: $(READY)  ## ruff (rules and format), mypy, and which folder imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## builds the pages in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(READY)  ## runs the notebooks on the embedded model and keeps their outputs
	$(BIN)/python tests/test_notebooks.py

dist: $(READY)  ## builds and checks the wheel and the source distribution in dist/
	rm -rf build dist kerasdiff.egg-info
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: dist  ## measures the embedded model and the package; results in benchmarks/results/
	$(BIN)/python benchmarks/embedded_quality.py
	$(BIN)/python benchmarks/embedded_speed.py
	$(BIN)/python benchmarks/embedded_start.py
	$(BIN)/python benchmarks/package.py

clean:  ## removes .venv and all that was built or drawn
	rm -rf $(VENV) out build dist site *.egg-info
