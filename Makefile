# The index of tasks: `make help` lists them.
#
# Environments live in .venv/: `service` runs the server, `test` adds what its tests need, `bench`
# what draws plots, `dev` has everything. Each is made when a task first needs it. Options of pip
# (PIP_INDEX_URL, …) and settings of the server (PTHETA_PORT, …) are taken from the environment or
# the command line.

SERVICE := .venv/service
TEST := .venv/test
BENCH := .venv/bench
DEV := .venv/dev
LOCKER := .venv/lock

# The first Python that will do; looked for only when an environment is made.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$python" && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# Two installations at once would build the same package in the same folder.
.NOTPARALLEL:
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: serve
serve: $(SERVICE)/.installed ## Serve model_store/ at PTHETA_HOST:PTHETA_PORT (127.0.0.1:8000)
	@exec $(SERVICE)/bin/python -m service

.PHONY: test
test: check test-service test-export ## Run everything that CI runs: lint, types, tests

.PHONY: test-service
test-service: $(TEST)/.installed # without torch
	$(TEST)/bin/python -m pytest --ignore=tests/export

.PHONY: test-export
test-export: $(DEV)/.installed
	$(DEV)/bin/python -m pytest tests/export

.PHONY: test-embedding
test-embedding: $(TEST)/.browser docs/embedding/node_modules ## Run bundles in Node and Chromium
	$(TEST)/bin/python -m pytest tests/embedding

.PHONY: check
check: $(DEV)/.installed ## Check lint, format and types
	$(DEV)/bin/ruff check
	$(DEV)/bin/ruff format --check
	$(DEV)/bin/mypy

.PHONY: format
format: $(DEV)/.installed ## Sort imports, mend what can be mended, format
	$(DEV)/bin/ruff check --fix-only --quiet
	$(DEV)/bin/ruff format

.PHONY: train
train: $(DEV)/.installed ## Train and publish a recipe: make train MODEL=nade-mnist
	@test -n "$(MODEL)" || { $(DEV)/bin/python -m export list; \
		echo "say which: make train MODEL=nade-mnist" >&2; exit 1; }
	$(DEV)/bin/python -m export train $(MODEL)
	$(DEV)/bin/python -m export convert $(MODEL)
	$(DEV)/bin/python -m export evaluate $(MODEL)
	$(DEV)/bin/python -m export publish $(MODEL)

.PHONY: bench
bench: $(BENCH)/.installed ## Measure the service into benchmarks/README.md; needs wrk
	$(BENCH)/bin/python -m benchmarks

.PHONY: dev
dev: $(DEV)/.installed ## Install PyTorch and all tools into .venv/dev

.PHONY: lock
lock: $(LOCKER)/.installed ## Pin the service's dependencies; UPGRADE=1 takes new releases
	$(call pin,service,requirements.lock)
	$(call pin,gpu,requirements-gpu.lock)

define pin
$(LOCKER)/bin/uv pip compile pyproject.toml --extra $(1) --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
	$(if $(UPGRADE),--upgrade) --output-file $(2)
endef

.PHONY: hooks
hooks: $(DEV)/.installed ## Check every commit before it is made
	$(DEV)/bin/pre-commit install

.PHONY: image
image: ## Build the container image `ptheta`
	docker build --tag ptheta .

# The environment at $(@D), new unless a sound one is there.
define environment
@test -n "$(PYTHON)" || { echo "ptheta needs Python 3.11 or newer with its venv module:" \
	"install it (Debian, Ubuntu: apt-get install python3-venv)" \
	"or name one: make $(MAKECMDGOALS) PYTHON=/usr/local/bin/python3.12" >&2; exit 1; }
@echo "Installing $(@D): $(1)"
@$(@D)/bin/python -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear $(@D)
endef

# Installs what the lock says, then an extra of pyproject.toml on top of it.
define install_extra
@$(@D)/bin/python -m pip install -qq --require-hashes --requirement requirements.lock
@$(@D)/bin/python -m pip install -qq --editable '.[$(1)]'
@touch $@
endef

$(SERVICE)/.installed: requirements.lock
	@rm -rf $(@D)
	$(call environment,the pinned dependencies of the service)
	@$(@D)/bin/python -m pip install -qq --require-hashes --requirement $<
	@touch $@

$(TEST)/.installed: requirements.lock pyproject.toml
	$(call environment,the service and its tests)
	$(call install_extra,test)

$(TEST)/.browser: $(TEST)/.installed
	@echo "Installing $(@D): what drives a browser"
	$(call install_extra,browser)

docs/embedding/node_modules: docs/embedding/package-lock.json
	@command -v npm > /dev/null || { echo "npm is missing: install it" \
		"(Debian, Ubuntu: apt-get install nodejs npm)" >&2; exit 1; }
	npm --prefix $(@D) ci --no-audit --no-fund
	@touch $@

$(BENCH)/.installed: requirements.lock pyproject.toml
	$(call environment,the service and what draws plots)
	$(call install_extra,bench)

$(DEV)/.installed: requirements.lock pyproject.toml
	$(call environment,torch and all tools, takes minutes)
	$(call install_extra,dev)

$(LOCKER)/.installed:
	$(call environment,uv)
	@$(@D)/bin/python -m pip install -qq uv
	@touch $@
