# Every target makes .venv and installs what it needs: nothing has to be done by hand first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test slow lint docs bench bench-tests kernel-matrix torch-matrix peers clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## roll a world model through a maze on the CPU: truth, eager and lightint beside each other, as a film
	$(BIN)/lightint demo --out out/demo

# One thread a worker: two workers with two threads each wait for one another on two cores. Bytecode is kept, also where
# the environment says otherwise: without it both workers compile every test module, half of the time that collecting takes.
test: $(STAMP)  ## the test suite; GPU tests skip themselves with a reason
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" --durations=60 --durations-min=3

slow: $(STAMP)  ## the tests that take minutes, and further seeds and models of others: hours on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	.ci/types

# The four folders are put together as the package that they are installed as, where the API reference reads them.
# Markdown has no Sphinx roles: a :class:`~module.Name` is shown as `Name`.
ROLES := s/:[a-z]+:`~[^`]*\.([^`.]+)`/`\1`/g; s/:(class|func|meth|mod|data|attr|exc):`\.?([^`]+)`/`\2`/g

docs: $(STAMP)  ## the documentation as a site in build/site; a broken link or an unknown name is an error
	rm -rf build/package && mkdir -p build/package
	cp -r lightint_compile build/package/ && cp -r passes kernels models build/package/lightint_compile/
	find build/package -name '*.py' -exec sed -E -i '$(ROLES)' {} +
	$(BIN)/python -m mkdocs build --strict --clean

bench: $(STAMP)  ## every measurement, and a page of them in out/bench; goes on where it was stopped
	$(BIN)/lightint bench all --out out/bench

bench-tests: $(STAMP)  ## pytest-benchmark files; results are kept in .benchmarks, for `pytest-benchmark compare`
	$(BIN)/python -m pytest -q -o norecursedirs= -p no:xdist --benchmark-autosave tests/benchmarks

kernel-matrix: $(STAMP)  ## every kernel compiled under Triton 3.6 to 3.9 (installed under build/triton, 3 GB), no GPU needed
	$(BIN)/python tests/support/kernel_matrix.py

torch-matrix: $(STAMP)  ## the suite under torch 2.11, 2.13 and 2.14 (installed under build/torch, 15 GB), on the CPU
	$(BIN)/python tests/support/torch_matrix.py

peers: $(STAMP)  ## PyTorch's operators, and with PYTORCH=dir DIFFUSERS=dir WORLDS=dir theirs, under the backend: over an hour
	$(BIN)/python -m pytest -q -o norecursedirs= -p no:xdist -p no:logging --tb=line tests/peers $(if $(PYTORCH),--pytorch=$(PYTORCH)) \
	    $(if $(DIFFUSERS),--diffusers=$(DIFFUSERS)) $(if $(WORLDS),--worlds=$(WORLDS)) --worlds-table=out/worlds.md --counts=out/peers.json

clean:
	rm -rf $(VENV) out build *.egg-info
