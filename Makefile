# make demo: set everything up, rank the zoo's encoders on embedded scenes, and confirm the ranking,
# with one process for each of up to four cores.
# make test: set everything up and run the tests, slow ones without type checks while they run
# (docs/testing.md). Both need Python 3.11+ and nothing else.
# make docs: the docs as a site in build/site.
# make test-fast: the tests that take no more than a few seconds each, all without type checks.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPED := build/typed# the package as it installs: probes/ and reports/ inside encbench/
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
PROCESSES ?= $(shell test $(CORES) -lt 4 && echo $(CORES) || echo 4)

.PHONY: demo test test-fast check docs fuzz torture clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "encbench needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) \
		-m encbench run --confirm --budget 12m --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest -m 'not slow'
	ENCBENCH_CHECK_TYPES=0 $(BIN)/python -m pytest -m slow

test-fast: $(READY)
	ENCBENCH_CHECK_TYPES=0 $(BIN)/python -m pytest -m 'not slow'

fuzz: $(READY)
	ENCBENCH_FUZZ_INPUTS=50000 $(BIN)/python -m pytest -q tests/fuzz

torture: $(READY)
	$(BIN)/python tests/torture.py --kills 100

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPED) && mkdir -p $(TYPED)/encbench
	ln -s $(CURDIR)/encbench/* $(CURDIR)/probes $(CURDIR)/reports $(TYPED)/encbench
	cd $(TYPED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p encbench

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the site is in build/site"

clean:
	rm -rf $(VENV) runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
