# Every target sets up what it needs. The first run takes a few minutes to download PyTorch.
#
#   make demo      all steps on a built-in data set, in a few minutes
#   make test      all tests but the slow ones
#   make test-all  all tests
#   make check     format, lint, types, tests
#   make format    format the code
#   make wheel     the package, as build/wheel/*.whl
#   make hooks     check format, lint and types at every commit

PYTHON ?= python3
BIN := .venv/bin
# Four processes: half of Ray's tests is waiting. A file's tests stay in one process, and the files that
# take longest come first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20
TESTS := @$(MAKE) --no-print-directory -j2 test-with-ray test-without-ray SELECTION

.PHONY: demo test test-all check lint format hooks wheel clean

demo: .venv/ready
	sh recipes/demo.sh

test: .venv/ready browser azurite kustomize
	$(TESTS)="not slow"

test-all: .venv/ready browser azurite kustomize slurm espeak
	$(TESTS)="slow or not slow"

.PHONY: test-with-ray test-without-ray
test-with-ray:
	$(PYTEST) -m "ray and ($(SELECTION))"

test-without-ray:
	$(PYTEST) -m "not ray and ($(SELECTION))"

check: lint test

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint cluster/Dockerfile

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hooks: .venv/ready
	$(BIN)/pre-commit install

# Removes build/lib first: setuptools would put modules into the wheel that no longer exist.
wheel: .venv/ready
	rm -rf build/lib build/wheel
	PYTHONPATH=build/uv $(PYTHON) -m uv build --quiet --wheel --out-dir build/wheel
	@ls build/wheel/*.whl

clean:
	rm -rf .venv build

# uv installs the CUDA stack of PyTorch in a minute where pip takes ten. uv goes into a separate folder:
# pip allows that even where it may not install into the system's Python. Bytecode is compiled now,
# else every Ray worker recompiles all its imports where the environment is read-only later.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer")'
	$(PYTHON) -m pip install --quiet --upgrade --target build/uv uv
	PYTHONPATH=build/uv $(PYTHON) -m uv venv --quiet --allow-existing --python $(PYTHON) .venv
	PYTHONPATH=build/uv $(PYTHON) -m uv pip install --quiet --python $(BIN)/python \
		--compile-bytecode --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

.PHONY: browser
browser:
	@sh tests/install_browser.sh

.PHONY: azurite
azurite:
	@sh tests/install_azurite.sh

.PHONY: kustomize
kustomize:
	@sh tests/install_kustomize.sh

.PHONY: slurm
slurm:
	@sh tests/install_slurm.sh

.PHONY: espeak
espeak:
	@sh tests/install_espeak.sh
