# Two commands do everything on a fresh machine with python3 (3.11 or newer) and make:
#   make demo    a real distillation on this machine
#   make test    the tests that CI runs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made anew when what is to be installed changes; otherwise the environment is used again.
STAMP := $(VENV)/.installed
INPUTS := pyproject.toml constraints.txt weights.txt scripts/install.py

.PHONY: demo test test-all faults check format golden clean

demo: $(STAMP)
	@$(BIN)/potstill demo $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

# Kills, spoilt bodies, full disks in large numbers: about ten minutes. SEED=… repeats one that failed.
SEED ?= $(shell date +%s)
faults: $(STAMP)
	@echo "seed $(SEED); the same again: make faults SEED=$(SEED)"
	@POTSTILL_FAULTS_SEED=$(SEED) $(BIN)/python -m pytest -m faults -rP --durations=10 $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pages that are generated from the code: docs/reference and the JSON Schema.
golden: $(STAMP)
	$(BIN)/python scripts/reference.py

$(STAMP): $(INPUTS)
	@$(PYTHON) scripts/install.py $(VENV)
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
