# `make run` and `make test` set up what is missing and do the rest; both can be killed and started again.
PYTHON ?= python3
RELEASE ?= 1.30.2
ARGS ?=
# Where it is set, each of the many processes that the tests start would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test lint long bench bench-compile train soak soak-smoke soak-compile detection

help:
	@echo "make run    judge the default checkpoint on the BM1684X simulator; options for pytest go into ARGS:"
	@echo "            make run ARGS='--checkpoint FILE --grid smoke'"
	@echo "make test   lint, check types and run the tests of this project"
	@echo "make long   the tests that take many minutes each"
	@echo "make bench  our speed beside that of the usual implementations, both sides in one run (a quarter of an hour)"
	@echo "make bench-compile  compile what should be fast, against targets and recorded bests; tables go to docs/ (an hour"
	@echo "                    at first, seconds from the cache)"
	@echo "make train  make the model that ships once more, and its tuned state, in trained/ (under an hour)"
	@echo "make soak   the long checks; the log goes to docs/soak.md"
	@echo "make soak-smoke  20 runs of the grid smoke must give the same records (half an hour); the table goes to"
	@echo "            docs/soak-smoke.md"
	@echo "make soak-compile  sizes and precisions through the compiler (hours at first, goes on where it was; narrow it with"
	@echo "            ARGS='--sizes 2.9B --one-block'); the table goes to docs/soak-compile.md"
	@echo "make detection  put known faults into targets, graphs and bmodels and see that the suites catch them; the tables go"
	@echo "            to docs/detection.md; ARGS='--part mutants' runs a part, see ARGS=--help"
	@echo "RELEASE=$(RELEASE) chooses the TPU-MLIR release, PYTHON=$(PYTHON) the interpreter"

setup:
	@$(PYTHON) bootstrap.py
	@.venv/bin/rwkv-tpu toolchain install $(RELEASE)

run: setup
	.venv/bin/pytest suites/ --toolchain $(RELEASE) $(ARGS)

test: setup lint
	.venv/bin/pytest tests/ $(ARGS)

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

long: setup
	.venv/bin/pytest tests/ -m long $(ARGS)

bench: setup
	.venv/bin/pytest benchmarks/ $(ARGS)

bench-compile: setup
	.venv/bin/rwkv-tpu bench-compile --toolchain $(RELEASE) --loop $(ARGS)

train: setup
	.venv/bin/rwkv-tpu train models/tiny.toml --out trained/
	.venv/bin/rwkv-tpu state-tune trained/model.safetensors models/bare-reverse.toml --out trained/tuned/

soak: setup
	.venv/bin/python tests/soak.py docs/soak.md

soak-smoke: setup
	.venv/bin/python tests/soak_smoke.py docs/soak-smoke.md $(ARGS)

soak-compile: setup
	.venv/bin/rwkv-tpu soak-compile --toolchain $(RELEASE) $(ARGS)

detection: setup
	.venv/bin/python -m tests.detection $(ARGS)
