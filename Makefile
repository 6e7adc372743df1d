# FedMTL. A bare `make` lists the targets.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BUF    := npx --yes @bufbuild/buf@1.75.0

PROTOS    := $(shell find protos -name '*.proto')
RELEASED  := protos/released.binpb
PROTOC     = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=$$scratch \
  --pyi_out=$$scratch --grpc_python_out=$$scratch --mypy_grpc_out=quiet:$$scratch $(PROTOS)
PACKAGES  := fedmtl_core fedmtl_server fedmtl_client fedmtl_local fedmtl_experiment benchmarks tools

.DEFAULT_GOAL := help
# Every target with a description is a name, and no file's.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(MAKEFILE_LIST))

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv and install FedMTL with its development tools.

# torch first and alone: the constraints then keep every other package from replacing it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "FedMTL needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,real]'
	@touch $@

proto: $(STAMP) ## Write generated/ and docs/reference/contract.md from protos/.
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(PROTOC) \
	  && rm -rf generated/fedmtl && mkdir -p generated && cp -r $$scratch/fedmtl generated/
	@$(BIN)/python -m tools.contract_page
	@echo "generated/ and docs/reference/contract.md are written from $(words $(PROTOS)) proto file(s)"

proto-check: $(STAMP) ## Fail when generated/ or docs/reference/contract.md is not what protos/ gives.
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(PROTOC) \
	  && diff -r -x __pycache__ -x '*.egg-info' $$scratch generated \
	  || { echo "generated/ is stale: run 'make proto' and commit the result" >&2; exit 1; }
	@$(BIN)/python -m tools.contract_page --check
	@echo "generated/ and docs/reference/contract.md are up to date"

proto-lint: ## Lint protos/ with buf (STANDARD); needs npm.
	$(BUF) lint
	$(BUF) format --diff --exit-code

proto-breaking: ## Fail when protos/ breaks the contract of the last release; needs npm.
	@$(BUF) breaking --against $(RELEASED) \
	  || { echo "protos/ breaks the contract of the last release ($(RELEASED)): v1 only takes additions" >&2; exit 1; }
	@echo "protos/ keeps the contract of the last release"

proto-release: ## Make protos/ the contract that proto-breaking holds to: part of a release; needs npm.
	$(BUF) build --exclude-source-info --output $(RELEASED)

lint: $(STAMP) ## Run ruff, mypy and bandit; with FEDMTL_AUDIT=1 the audit too.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(PACKAGES)
	@if [ -n "$$FEDMTL_AUDIT" ]; then $(BIN)/python -m tools.audit; \
	  else echo "audit: skipped: 'make audit' asks the registry about every dependency; FEDMTL_AUDIT=1 has lint do so"; fi

prose: $(STAMP) ## Check spelling, and that phrases which slow readers down do not come back.
	@$(BIN)/codespell
	@$(BIN)/python -m tools.prose

audit: $(STAMP) ## Ask whether the pinned dependencies have known vulnerabilities; needs the network.
	$(BIN)/python -m tools.audit

format: $(STAMP) ## Format the Python code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

shape: $(STAMP) ## Print the figures of the architecture and fail on one over its limit.
	@$(BIN)/python -m tools.shape

settings: $(STAMP) ## Write docs/reference/configuration.md from the configuration.
	@$(BIN)/python -m tools.settings_page

examples: example-node example-go example-cpp ## Build the clients in TypeScript, Go and C++; needs npm, Go, and C++ with gRPC.

example-node: examples/node/node_modules/.package-lock.json
	cd examples/node && npm run --silent build

examples/node/node_modules/.package-lock.json: examples/node/package-lock.json
	cd examples/node && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

example-go example-cpp: example-%:
	$(MAKE) -C examples/$*

test: $(STAMP) ## Run the tests, but for the long ones; a file of them on each of two processors.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not long"

test-long: $(STAMP) ## Run the long tests: whole federations as processes; ten minutes.
	$(BIN)/python -m pytest -m long

faults: $(STAMP) ## Kill a server 100 times, and the other faults in their long form; a quarter of an hour.
	FEDMTL_FAULTS=long $(BIN)/python -m pytest tests/faults

fuzz: $(STAMP) ## Look for inputs and orders of calls that do harm; ten minutes.
	$(BIN)/python -m tests.fuzz --seconds 400
	FEDMTL_FUZZ=long $(BIN)/python -m pytest tests/fuzz -k "not half_a_minute"

docs: $(STAMP) ## Build the documentation into build/site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html is the first page"

tutorial: $(STAMP) ## Follow docs/tutorial.md word for word; several minutes.
	FEDMTL_TUTORIAL=1 $(BIN)/python -m pytest tests/docs

demo: $(STAMP) proto ## Train three tasks on built-in data: one server, three clients, on this machine.
	$(BIN)/fedmtl-local --config configs/demo.yaml

real: $(STAMP) ## The same on real rows and a pretrained encoder.
	$(BIN)/fedmtl-local --config configs/real.yaml

experiment: $(STAMP) ## Compare clients alone, a federation per task, one of all tasks, and all data in one place; one seed.
	$(BIN)/fedmtl-experiment --config configs/experiment-small.yaml

experiment-full: $(STAMP) ## The whole comparison: all settings, two encoders, three seeds; goes on where it was stopped.
	$(BIN)/fedmtl-experiment --config configs/experiment.yaml

bench: $(STAMP) ## Measure the wire and the average against bare gRPC and bare PyTorch, in the same run.
	$(BIN)/python -m benchmarks

bench-encodings: $(STAMP) ## Compare the wire encodings over whole demos, 5 seeds each: bytes and metrics.
	$(BIN)/python -m benchmarks.encodings

bench-scale: $(STAMP) ## Measure rounds of 1,000 small and of 200 larger clients on one server.
	$(BIN)/python -m benchmarks.scale

bench-training: $(STAMP) ## Measure a client's round of training against a plain loop, on the rows of configs/real.yaml.
	$(BIN)/python -m benchmarks.training

bench-hostile: $(STAMP) ## Measure rounds of honest clients with and without 50 hostile ones.
	$(BIN)/python -m benchmarks.hostile

same-bits: $(STAMP) ## Compare what two revisions compute, A and B, bit by bit: make same-bits A=main B=.; ten minutes.
	$(BIN)/python -m tools.same_bits $(A) $(B)

clean: ## Remove what was built; runs/ stays.
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf examples/node/node_modules examples/node/dist examples/node/src/generated examples/*/build
