# Main commands: `make demo` runs all stages from simulation to report, `make test` runs all checks.
# Both set up .venv from constraints.txt on their first run and after a requirement has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Compiled extensions and font lists are in the checkout, so that a new clone has none.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.cache/torch_extensions
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib

DEMO_CONFIG := ds_configs/demo_cpu.json
FAULT_TEST_CONFIG := ds_configs/fault_test_cpu.json

.PHONY: help install demo quick test docs fuzz fresh fault-test ablation lint types layers clean

help:
	@echo "make demo   simulate data, train with two processes, evaluate, forecast, report, kill and resume"
	@echo "make test   lint, types, layers and all tests with coverage"
	@echo "make docs   the documentation and the reference of the Python names: build/docs/README.html"
	@echo "make fuzz   random damage in every kind of file, and random forms of datasets; two hours"
	@echo "make mutants  put 500 faults into the compiled kernels and count those that the emulator notices"
	@echo "make quick  lint, types, layers and the quick tests"
	@echo "make fresh  demo and test as on a new machine: a fresh clone, an empty HOME; before a release"
	@echo "make ablation  compare variants of the model in simulated worlds: 150 trainings, hours, runs/ablation"
	@echo "make fault-test  kill a run 60 times and compare it with an undisturbed one"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "aqtopo needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) -m venv failed; on Debian, as root: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install -qq --constraint constraints.txt torch
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[train,triton,report,prepare,monitors,docs,dev]'
	touch $@

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/demo.py $(DEMO_CONFIG)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports --cache-dir .cache/import_linter

quick: lint types layers
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' -n 2 --dist loadgroup -rs

test: lint types layers
	bash scripts/install_debian_packages.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -rs --cov --cov-report=term:skip-covered

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -q -c docs . build/docs
	@echo build/docs/README.html

fresh:
	bash scripts/fresh.sh

# Changes of each kind of file: 10,000 take one to two hours on two cores. A form of a dataset takes 0.3 s of a core,
# so 10,000 in each of the 22 tests of forms would take nine hours on two cores.
EXAMPLES ?= 10000
FORMS ?= 300
fuzz: $(STAMP)
	AQTOPO_FUZZ_EXAMPLES=$(EXAMPLES) OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --timeout 14400 tests/test_damaged_json.py \
		tests/test_damaged_files.py tests/test_damaged_weights.py tests/checkpoint/test_damaged_states.py
	AQTOPO_FUZZ_EXAMPLES=$(FORMS) OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --timeout 7200 \
		tests/data/test_outside_forms.py tests/data/test_write_forms.py tests/evaluation/test_against_forms.py \
		tests/evaluation/test_station_forms.py tests/inference/test_forecast_forms.py \
		tests/inference/test_weather_forms.py

mutants: $(STAMP)
	TRITON_CACHE_DIR=.cache/triton OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m tests.amdgcn.mutants --count 500

fault-test: $(STAMP)
	rm -rf runs/fault_test
	test -d data/simulated_32x64.zarr || $(BIN)/aqtopo synth data/simulated_32x64.zarr --grid 32x64 \
		--years 2016 2017 2018 --train-years 2016
	OMP_NUM_THREADS=1 $(BIN)/aqtopo fault-test $(FAULT_TEST_CONFIG) --kills 60 --out runs/fault_test

ablation: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/ablation.py

clean:
	rm -rf .cache .coverage*
