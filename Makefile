# Everything that a fresh clone needs is installed here: Python 3.11, pip and make suffice.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_OFFLINE := 1

.PHONY: help demo up test test-slow test-comfyui check format stubs chaos fuzz bench train-demo model-sums clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## eight CPU ranks sample one picture; results in out/
	$(BIN)/ditmesh demo

up: $(READY) ## keep a local cluster running
	$(BIN)/ditmesh up --device cpu

# The example clients of other languages are built and run by the tests.
$(VENV)/.toolchains: $(READY) clients/install-toolchains.sh clients/node/package-lock.json
	clients/install-toolchains.sh $(CURDIR)/$(VENV)
	@touch $@

# Two workers: one has all clusters and groups of processes, the other has the rest (tests/conftest.py).
test: $(READY) $(VENV)/.toolchains ## every test that needs no GPU and takes no minutes
	$(BIN)/pytest -n 2 --durations 20 -m 'not gpu and not slow'

# Those of Go and Java are large: only the slow tests build these.
$(VENV)/.toolchains-slow: $(VENV)/.toolchains
	clients/install-toolchains.sh $(CURDIR)/$(VENV) go java
	@touch $@

test-slow: $(READY) $(VENV)/.toolchains-slow ## deployments, Go and Java, and, if COMFYUI is set, ComfyUI
	$(BIN)/pytest -m 'slow and not gpu'

# ComfyUI runs in an environment of its own, unless COMFYUI_PYTHON names one that has all it needs.
ifndef COMFYUI_PYTHON
COMFYUI_PYTHON := $(CURDIR)/$(VENV)/comfyui/bin/python
COMFYUI_READY := $(VENV)/comfyui/.ready
endif

$(VENV)/comfyui/.ready: $(READY) tests/clients/comfyui_node/install-comfyui.sh
	PYTHON=$(PYTHON) tests/clients/comfyui_node/install-comfyui.sh $(COMFYUI) $(VENV)/comfyui
	@touch $@

ifdef COMFYUI
test-comfyui: $(READY) $(COMFYUI_READY) ## the node pack in a real ComfyUI: COMFYUI=<checkout>
	COMFYUI=$(abspath $(COMFYUI)) COMFYUI_PYTHON=$(COMFYUI_PYTHON) \
	  $(BIN)/pytest -m comfyui tests/clients/comfyui_node
else
test-comfyui:
	@echo "test-comfyui: skipped, because there is no COMFYUI=<checkout of ComfyUI>"
endif

check: $(READY) ## format, lint, types, import rules, contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/buf breaking proto --against tests/wire/contract.binpb
	$(BIN)/python tools/stubs.py --check
	$(BIN)/python tools/protocol_docs.py --check
	$(BIN)/python tools/error_docs.py --check
	$(BIN)/python -m deploy.check --install
	$(BIN)/python -m deploy.check

format: $(READY) ## format sources and contract
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write proto

stubs: $(READY) ## generate ditmesh/v1 and the reference from proto/
	$(BIN)/python tools/stubs.py
	$(BIN)/python tools/protocol_docs.py
	$(BIN)/python tools/error_docs.py

chaos: $(READY) ## faults over jobs, by the hundred: kills, stops, cut links
	$(BIN)/python -m tests.chaos

fuzz: $(READY) ## malformed requests, by the thousand
	$(BIN)/python -m tests.fuzz

$(VENV)/.bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

bench: $(VENV)/.bench ## ditmesh beside the alternatives; docs/performance.md, out/bench/
	$(BIN)/python -m bench

train-demo: $(READY) ## train models/pixel-portraits from nothing (hours on a CPU)
	$(BIN)/python -m training.portraits.train

model-sums: ## checksums of the demo model for deploy/, after it has changed
	cd models && find . -name '*.safetensors' -o -name '*.safetensors.index.json' | cut -c 3- \
	  | LC_ALL=C sort | xargs sha256sum > ../deploy/k8s/overlays/cpu-demo/SHA256SUMS

clean: ## remove what was built, not the environment
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
