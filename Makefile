# Set-up on a fresh machine: Python 3.11 or newer with venv, and make. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo test lint models notebook bench gpu storm fuzz sbom clean

# The main job on simulated heads: train, synthesize, score, report. A few minutes on two cores.
demo: $(VENV)/package
	$(BIN)/unscanned demo --out runs/demo

test: $(VENV)/dev
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Trains the package's models anew from docs/experiments/models.toml, goes on where it was, and puts them on their shelf:
# make models LABELS=head-labels REAL="ms-t1-t2-flair glioma-t1-t2-flair" MODELS="pd-t2 t1w-t2w"
models: $(VENV)/package
	$(if $(LABELS),,$(error give the folder of label maps: make models LABELS=FOLDER))
	$(BIN)/python tools/make_models.py runs/models --labels $(LABELS) $(if $(REAL),--real $(REAL)) \
		$(if $(MODELS),--models $(MODELS))

# Runs docs/notebook.ipynb anew and keeps what its cells show.
notebook: $(VENV)/dev
	$(BIN)/python tools/run_notebook.py

# Speed and memory, side by side with what else a user could pick. Heavy: about ten minutes on two cores.
bench: $(VENV)/bench
	$(BIN)/unscanned benchmark --json runs/benchmark.json --plot runs/benchmark.png

# The device tests and the same harness on a GPU; says so and ends where there is none.
gpu: $(VENV)/bench $(VENV)/dev
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
		$(BIN)/python -m pytest tests/machine/test_devices.py && \
		$(BIN)/unscanned benchmark --device cuda --json runs/benchmark-gpu.json --plot runs/benchmark-gpu.png; \
	else echo "skipped: PyTorch sees no CUDA device on this machine"; fi

# Hundreds of kills of training, synthesis and the other verbs. Heavy.
storm: $(VENV)/dev
	PYTHONPATH=tests $(BIN)/python -m storm.storm_training
	PYTHONPATH=tests $(BIN)/python -m storm.storm_synthesize
	PYTHONPATH=tests $(BIN)/python -m storm.storm_verbs

# Tens of thousands of calls of the command line; of mutated NIfTI files, and of those that the reader's coverage leads
# to. Heavy; make fuzz CALLS=1000 is shorter. For every forty calls in forks, one is made as a process of its own.
CALLS ?= 20000
fuzz: $(VENV)/fuzz
	mkdir -p runs
	PYTHONPATH=tests $(BIN)/python -m harness.run --calls $(CALLS) --json runs/calls.json
	PYTHONPATH=tests $(BIN)/python -m harness.run --calls $$(( $(CALLS) / 40 )) --processes --json runs/processes.json
	PYTHONPATH=tests $(BIN)/python -m fuzz.fuzz_volume --executions 25000
	PYTHONPATH=tests $(BIN)/python -m fuzz.fuzz_volume --engine atheris --executions 300000

# The third-party software in .venv with versions and licences, as CycloneDX: runs/sbom.json.
sbom: $(VENV)/package
	mkdir -p runs
	$(PYTHON) -m venv $(VENV)/sbom
	$(VENV)/sbom/bin/python -m pip install --disable-pip-version-check --quiet cyclonedx-bom
	$(VENV)/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file runs/sbom.json $(BIN)/python

$(BIN)/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'unscanned needs Python 3.11 or newer'"
	$(PYTHON) -m venv $(VENV)

$(VENV)/package: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable ".[dev]"
	touch $(VENV)/package $@

$(VENV)/bench: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable ".[bench]"
	touch $@

$(VENV)/fuzz: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable ".[dev,fuzz]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache
