# Every target sets up what it needs. The first one takes a few minutes to download PyTorch.
#
#   make demo      the whole job on a built-in data set, in a few minutes
#   make test      the tests, but for the long ones
#   make test-all  all tests
#   make check     format, lint, types, tests
#   make format    put the code into its format
#   make wheel     the package, as build/wheel/*.whl
#   make hooks     check format, lint and types at every commit

PYTHON ?= python3
BIN := .venv/bin
# Those with Ray, one after the other, and beside them all others.
TESTS := @$(MAKE) --no-print-directory -j2 test-with-ray test-without-ray SELECTION

.PHONY: demo test test-all check lint format hooks wheel clean

demo: .venv/ready
	sh recipes/demo.sh

test: .venv/ready browser
	$(TESTS)="not slow"

test-all: .venv/ready browser
	$(TESTS)="slow or not slow"

.PHONY: test-with-ray test-without-ray
test-with-ray:
	$(BIN)/python -m pytest -m "ray and ($(SELECTION))"

test-without-ray:
	$(BIN)/python -m pytest -m "not ray and ($(SELECTION))"

check: lint test

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hooks: .venv/ready
	$(BIN)/pre-commit install

# Without build/lib: setuptools would put modules into the wheel that have gone since.
wheel: .venv/ready
	rm -rf build/lib build/wheel
	PYTHONPATH=build/uv $(PYTHON) -m uv build --quiet --wheel --out-dir build/wheel
	@ls build/wheel/*.whl

clean:
	rm -rf .venv build

# uv installs the CUDA stack of PyTorch in a minute where pip takes ten. It goes into a folder of its
# own, which pip allows where the system's Python is not to be installed into. Bytecode is compiled
# now: without it every Ray worker compiles all its imports anew where nothing may be written later.
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
