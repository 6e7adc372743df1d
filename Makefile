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
# Every target with a description is phony.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(MAKEFILE_LIST))

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

install: $(STAMP) ## Create .venv and install FedMTL with its development tools.

# torch is installed first and alone: the constraints then prevent other packages from replacing it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "FedMTL needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,real]'
	@touch $@

proto: $(STAMP) ## Generate generated/ and docs/reference/contract.md from protos/.
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(PROTOC) \
	  && rm -rf generated/fedmtl && mkdir -p generated && cp -r $$scratch/fedmtl generated/
	@$(BIN)/python -m tools.contract_page
	@echo "generated/ and docs/reference/contract.md were written from $(words $(PROTOS)) proto file(s)"

proto-check: $(STAMP) ## Fail if generated/ or docs/reference/contract.md does not match protos/.
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(PROTOC) \
	  && diff -r -x __pycache__ -x '*.egg-info' $$scratch generated \
	  || { echo "generated/ is stale: run 'make proto' and commit the result" >&2; exit 1; }
	@$(BIN)/python -m tools.contract_page --check
	@echo "generated/ and docs/reference/contract.md are up to date"

proto-lint: ## Lint protos/ with buf (STANDARD). Needs npm.
	$(BUF) lint
	$(BUF) format --diff --exit-code

proto-breaking: ## Fail if protos/ breaks the contract of the last release. Needs npm.
	@$(BUF) breaking --against $(RELEASED) \
	  || { echo "protos/ breaks the contract of the last release ($(RELEASED)): v1 only takes additions" >&2; exit 1; }
	@echo "protos/ keeps the contract of the last release"

proto-release: ## For a release, save protos/ as the contract that proto-breaking compares with. Needs npm.
	$(BUF) build --exclude-source-info --output $(RELEASED)

lint: $(STAMP) prose ## Run ruff, mypy, bandit and the check of the prose, and with FEDMTL_AUDIT=1 also the audit.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(PACKAGES)
	@if [ -n "$$FEDMTL_AUDIT" ]; then $(BIN)/python -m tools.audit; \
	  else echo "audit: skipped; to look up every dependency in the registry, run 'make audit' or set FEDMTL_AUDIT=1"; fi

prose: $(STAMP) ## Check spelling, phrases that slow readers down, and the length of commit subjects.
	@$(BIN)/codespell
	@$(BIN)/python -m tools.prose

audit: $(STAMP) ## Check the pinned dependencies for known vulnerabilities. Needs the network.
	$(BIN)/python -m tools.audit

format: $(STAMP) ## Format the Python code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

shape: $(STAMP) ## Measure the code's architecture (sizes, imports) and fail if a limit is exceeded.
	@$(BIN)/python -m tools.shape

settings: $(STAMP) ## Generate docs/reference/configuration.md from the configuration classes.
	@$(BIN)/python -m tools.settings_page

examples: example-node example-go example-cpp ## Build the TypeScript, Go and C++ clients. Needs npm, Go, and C++ with gRPC.

example-node: examples/node/node_modules/.package-lock.json
	cd examples/node && npm run --silent build

examples/node/node_modules/.package-lock.json: examples/node/package-lock.json
	cd examples/node && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

example-go example-cpp: example-%:
	$(MAKE) -C examples/$*

test: $(STAMP) ## Run all tests except the long ones, in two processes.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not long"

test-long: $(STAMP) ## Run the long tests: whole federations as processes. Takes 10 minutes.
	$(BIN)/python -m pytest -m long

faults: $(STAMP) ## Run the long fault tests, such as killing a server 100 times. Takes 15 minutes.
	FEDMTL_FAULTS=long $(BIN)/python -m pytest tests/faults

fuzz: $(STAMP) ## Search for harmful inputs and call sequences. Takes 10 minutes.
	$(BIN)/python -m tests.fuzz --seconds 400
	FEDMTL_FUZZ=long $(BIN)/python -m pytest tests/fuzz -k "not half_a_minute"

docs: $(STAMP) ## Build the documentation into build/site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the first page is build/site/index.html"

tutorial: $(STAMP) ## Run every command of docs/tutorial.md. Takes several minutes.
	FEDMTL_TUTORIAL=1 $(BIN)/python -m pytest tests/docs

demo: $(STAMP) proto ## Train three tasks on built-in data: one server, three clients, on this machine.
	$(BIN)/fedmtl-local --config configs/demo.yaml

real: $(STAMP) ## Train on real rows with a pretrained encoder: one server and its clients, on this machine.
	$(BIN)/fedmtl-local --config configs/real.yaml

experiment: $(STAMP) ## Compare isolated clients, single-task and multi-task federations, and pooled data, with one seed.
	$(BIN)/fedmtl-experiment --config configs/experiment-small.yaml

experiment-full: $(STAMP) ## Run or resume the full comparison: all settings, two encoders, three seeds.
	$(BIN)/fedmtl-experiment --config configs/experiment.yaml

bench: $(STAMP) ## Compare transfers with bare gRPC, and the average with bare PyTorch, in the same run.
	$(BIN)/python -m benchmarks

bench-encodings: $(STAMP) ## Compare bytes and metrics of the wire encodings in whole demos, 5 seeds each.
	$(BIN)/python -m benchmarks.encodings

bench-scale: $(STAMP) ## Measure rounds of one server with 1,000 small or 200 larger clients.
	$(BIN)/python -m benchmarks.scale

bench-training: $(STAMP) ## Compare a client's training round with a plain training loop, on the rows of configs/real.yaml.
	$(BIN)/python -m benchmarks.training

bench-adapters: $(STAMP) ## Compare adapters with full fine-tuning: a client's time and memory, rounds, the server's memory.
	$(BIN)/python -m benchmarks.adapters

bench-hostile: $(STAMP) ## Measure rounds of honest clients with and without 50 hostile clients.
	$(BIN)/python -m benchmarks.hostile

same-bits: $(STAMP) ## Compare the results of two revisions bit by bit, in 10 minutes: make same-bits A=main B=.
	$(BIN)/python -m tools.same_bits $(A) $(B)

clean: ## Remove all build outputs. Keeps runs/.
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf examples/node/node_modules examples/node/dist examples/node/src/generated examples/*/build
