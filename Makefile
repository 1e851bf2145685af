# make demo    edit a clip with the embedded model        make test       what continuous integration runs
# make nightly every test, sweeps and long runs too
# make setup   only build .venv/                          make test-fast  what one runs while working
# make lint    style and types                            make quality    measure the edits, 20 minutes
# make bench   time the ops and engines         make wheels     fetch what the TensorRT tests need
# make soak    edit a film of 20 000 frames and watch the memory; FRAMES=100000 for a longer one
# make distill  teach a student of the embedded generator's base stage fewer steps; goes on where it was stopped
# make reference  write the tables of options and steps in docs/ anew
# make train-phenaki  train a storyteller (fairy story), and go on where it was stopped; many hours
# make clean   remove what these commands made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
WHEELS := build/wheels
FOLDERS := kernels export engines runtime
FRAMES ?= 20000
PHENAKI ?= build/phenaki
INSTRUCTION ?= turn it into a thermal image

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: axe setup demo test test-fast nightly environments lint reference format typecheck quality distill bench soak wheels gpu-wheels gpu-rehearsal train-phenaki clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml CMakeLists.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fairy needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	@mkdir -p demo
	@$(BIN)/python examples/make_clip.py demo/clip.mp4
	@$(BIN)/fairy edit demo/clip.mp4 "$(INSTRUCTION)" --out demo/edited.mp4 \
		--compare demo/side_by_side.mp4 --preview demo/anchors.png --report demo/report.json

# One process for each core, each with one thread; a file's tests stay together, so that what they share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

test: setup lint wheels axe
	$(PYTEST) -m "not nightly" --durations 15

nightly: setup lint wheels axe
	$(PYTEST) --durations 30
	$(BIN)/python tests/environments.py

# The fast tests on every Python that is here, with the lowest and the highest versions that are allowed.
environments:
	$(PYTHON) tests/environments.py

wheels: $(WHEELS)/.fetched

$(WHEELS)/.fetched: $(STAMP) tests/engines/tensorrt/wheels.txt
	@mkdir -p $(WHEELS)
	@grep -v '^#' tests/engines/tensorrt/wheels.txt \
		| xargs -n 1 $(BIN)/python -m pip download --quiet --no-deps --dest $(WHEELS) \
		&& touch $@ || echo "Some of NVIDIA's wheels could not be fetched; the tests that need them are skipped."

# What looks for barriers on the page of `fairy serve`.
axe: build/axe-core/.fetched

build/axe-core/.fetched:
	@mkdir -p build/axe-core
	@cd build/axe-core && npm pack --silent axe-core@4 >/dev/null 2>&1 && tar -xzf axe-core-4*.tgz && touch .fetched \
		|| echo "axe-core could not be fetched (by npm); the page's barriers are not looked for."

test-fast: setup
	$(PYTEST) -m "not slow and not nightly"

lint: setup typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup
	MYPYPATH=. $(BIN)/mypy $(foreach folder,$(FOLDERS),-p fairy.$(folder))

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

distill: setup
	PYTHONPATH=. $(BIN)/python -m training.distillation --model runtime/models/generator --out build/distilled \
		--to build/distilled/generator

reference: setup
	$(BIN)/python -m fairy.runtime.cli.reference docs

quality: setup
	$(BIN)/python -m benchmarks.quality --out benchmarks/results/quality

bench: setup
	$(BIN)/pytest benchmarks

soak: setup
	$(BIN)/python -m benchmarks.soak --frames $(FRAMES)

# What a GPU machine without network lacks, beside the tracked files.
gpu-wheels: setup
	@mkdir -p .whl
	@$(BIN)/python -m pip download --quiet --no-deps --dest .whl $(shell grep -E '^(diffusers|importlib-metadata)==' requirements.lock)

gpu-rehearsal: gpu-wheels
	PYTHON312=$(PYTHON312) benchmarks/gpu/rehearse.sh

train-phenaki: setup
	$(BIN)/python -m training.phenaki_tokenizer --out $(PHENAKI)
	$(BIN)/python -m training.phenaki_tokenizer --out $(PHENAKI) --evaluate 100
	$(BIN)/python -m training.phenaki_tokenizer --out $(PHENAKI) --per-frame
	$(BIN)/python -m training.phenaki_tokenizer --out $(PHENAKI) --per-frame --evaluate 100
	$(BIN)/python -m training.phenaki --out $(PHENAKI)
	$(BIN)/python -m training.package_phenaki --from $(PHENAKI) --to $(PHENAKI)/storyteller
	$(BIN)/python -m training.evaluate_phenaki $(PHENAKI)/storyteller --out $(PHENAKI)/quality
	$(BIN)/python -m training.evaluate_phenaki $(PHENAKI)/storyteller --out $(PHENAKI)/quality --drift 20

clean:
	rm -rf $(VENV) .whl build demo dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
