# All targets run from .venv, which is created on first use; nothing else has to be installed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install tools demo test test-platform test-fast coverage lint types contracts format constraints proto clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

install: $(INSTALLED) ## create .venv and install the project with all extras

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

tools: $(INSTALLED) ## install what tests use beyond Python packages (as root on Debian; elsewhere it says what is missing)
	@$(BIN)/python deploy/install_tools.py

demo: $(INSTALLED) ## phantoms -> pipeline -> release -> service -> ranked hits (ARGS=--no-serve stops after the search)
	$(BIN)/python deploy/demo.py $(ARGS)

# Two tests side by side on two cores: with one thread each, they do not wait for each other. In random order; draws are
# seeded by the tests themselves.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder --randomly-dont-reset-seed

test: tools lint types contracts ## lint, types, import contracts and all tests but the longest
	$(PYTEST) tests -m "not platform"

test-platform: $(INSTALLED) ## tests that take many minutes; `make test` has a short form of each
	$(BIN)/python -m pytest tests -m platform

test-fast: $(INSTALLED) ## unit and congruence tests without Ray
	$(PYTEST) tests/unit tests/congruence -m "not slow"

coverage: $(INSTALLED) ## lines that the tests run, by package (in this process and those it starts)
	-$(PYTEST) tests -m "not platform" --cov --cov-report=
	$(BIN)/python -m coverage report --format=total --include='platform/*' --fail-under=92
	$(BIN)/python -m coverage report --include='platform/*,jobs/*,serve/*' --skip-covered --sort=cover
	$(BIN)/python -m coverage report --format=total --include='jobs/*,serve/*' --fail-under=80

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

contracts: $(INSTALLED)
	$(BIN)/lint-imports

format: $(INSTALLED) ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(INSTALLED) ## update constraints.txt to the newest versions
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
		--no-header --no-annotate --quiet --output-file constraints.txt

proto: $(INSTALLED) ## generate serve/mrcg_serve/rpc/retrieval_pb2* from retrieval.proto
	$(BIN)/uv tool run --from grpcio-tools==1.85.1 python -m grpc_tools.protoc -I serve --python_out=serve --pyi_out=serve \
		--grpc_python_out=serve serve/mrcg_serve/rpc/retrieval.proto

clean: ## delete everything that make created, including .venv
	rm -rf .venv demo dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
