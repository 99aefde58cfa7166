# alignkit: `make quickstart` trains the first policy, `make test` is what CI runs.

PYTHON ?= python3
# Overrides of the recipe, e.g. make quickstart ARGS="stages.align.algorithm=rejection_sampling"
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
# The last TRL with PPO, for the benchmarks, in an environment that borrows everything else from .venv.
PPO := .venv-bench-ppo
SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
# Only what an installation depends on: an editable install follows the code by itself.
INPUTS := pyproject.toml constraints.txt

# For test-lowest and test-newest: what may not vary, such as `PINS=torch==2.13.0` where other builds are too large.
PINS ?=

# For test-perturbed: each seed is another processor, and the suite runs once on each.
SEEDS ?= 1 2

.PHONY: quickstart test test-perturbed test-gpu gpu-check slow faults test-lowest test-newest bench pictures site lint fix clean

quickstart: .venv/.installed
	$(BIN)/alignkit run recipes/quickstart.yaml $(ARGS)

# Compiled modules are written even where the environment asks for none: workers and processes of tests read them.
test: lint
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# The suite as on other processors: every product of matrices changes in its last bit (tests/perturbed).
test-perturbed: .venv/.installed-test
	for seed in $(SEEDS); do \
	  ALIGNKIT_TEST_ROUNDING=$$seed PYTHONPATH=$(CURDIR)/tests/perturbed OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= \
	  $(BIN)/python -m pytest -p perturbed -n 2 --dist worksteal $(ARGS) || exit 1; \
	done

# What takes minutes: example packages, all model families, simulated CUDA, browsers, packaging.
slow: .venv/.installed-test
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m slow -n 2 --dist worksteal $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest docs/examples -m "slow or not slow" -n 2 --dist worksteal $(ARGS)

faults: .venv/.installed-test
	FAULTS_EVERY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/test_faults.py $(ARGS)

# The suite with models and tensors on a GPU, which it needs. One process: two would share the GPU's memory.
test-gpu: .venv/.installed-test
	ALIGNKIT_TEST_DEVICE=cuda $(BIN)/python -m pytest $(ARGS)

# Ten minutes of a GPU, a part after the other, whatever fails; without one: ARGS="--short --simulated".
gpu-check: .venv/.installed-test
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

# The oldest and the newest versions that pyproject.toml allows, each in an environment of its own.
test-lowest: .venv-lowest/.installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

test-newest: .venv-newest/.installed
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

bench: .venv/.installed $(PPO)/.installed
	$(BIN)/python -m benchmarks $(ARGS)

# The pictures of README and the pages, in Chromium.
pictures: .venv/.installed-test
	$(PIP) playwright
	$(BIN)/python docs/make_pictures.py $(ARGS)

site: .venv/.installed-docs
	$(BIN)/python docs/site/make_site.py $(ARGS)

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/house.py

fix: .venv/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Stamp files: an installation is done once, and again when its inputs change.
.venv/.installed: $(INPUTS) | $(BIN)/python
	$(PIP) -e .
	touch $@

.venv/.installed-test: $(INPUTS) | $(BIN)/python
	$(PIP) -e ".[test]"
	touch $@ .venv/.installed

.venv/.installed-docs: $(INPUTS) | $(BIN)/python
	$(PIP) -e ".[docs]"
	touch $@ .venv/.installed

.venv-lowest/.installed: RESOLUTION := lowest-direct
.venv-newest/.installed: RESOLUTION := highest

.venv-lowest/.installed .venv-newest/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check -q uv
	printf '%s\n' $(PINS) > $(@D)/pins.txt
	$(@D)/bin/uv pip install -q --python $(@D)/bin/python --resolution $(RESOLUTION) -c $(@D)/pins.txt -e ".[test]"
	touch $@

$(PPO)/.installed: constraints.txt | .venv/.installed
	$(BIN)/python -m venv --clear --without-pip $(PPO)
	$(BIN)/python -m pip --python $(PPO)/bin/python install --disable-pip-version-check -q --no-deps trl==1.12.0
	$(BIN)/python $(SITE) > "$$($(PPO)/bin/python $(SITE))/borrowed.pth"
	touch $@
