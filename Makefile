# The two commands of the README are `make demo` and `make test`; everything else serves them.
# pip's usual settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf ...) are honoured everywhere.
PYTHON ?= python3
BIN := bin
RUNTIME := .venv/runtime
DEV := .venv/dev
# The torch to test with. Outside a CPU-only machine a plain `torch` is the CUDA build: see tests/constraints.txt.
TORCH ?= torch==2.13.0
BUNDLE := bundles/default
CLIP := clips/demo.mp4

.PHONY: demo test test-full test-sizes test-recipes test-lowest check format lint types layers tests bench memory gpu-check clean

demo: $(RUNTIME)/ready
	$(RUNTIME)/$(BIN)/visrt track $(CLIP) --bundle $(BUNDLE) --in-flight 3 --out out/demo --overwrite
	@echo "watch out/demo/overlay.mp4"

test: $(DEV)/ready
	$(DEV)/$(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile

# Full-size networks through the exporter, TensorRT-RTX's builder and two steps of training: more than an hour on two cores;
# exporting a ViT-L takes more than 10 GB.
test-full: $(DEV)/ready
	$(DEV)/$(BIN)/python -m pytest -q -m full_size

# A ResNet-50 bundle of four sizes, its share of weights and its engines: half an hour on two cores.
test-sizes: $(DEV)/ready
	$(DEV)/$(BIN)/python -m pytest -q -m every_size

# Two steps of every published recipe at full network size: more than half an hour on two cores.
test-recipes: $(DEV)/ready
	$(DEV)/$(BIN)/python -m pytest -q -m "full_size or every_recipe" tests/published

# The lowest versions that pyproject.toml declares, in an environment of their own: minutes, most of it downloads.
test-lowest:
	$(PYTHON) tests/cli/lowest_versions.py .venv/lowest

check: format lint types layers tests

format: $(DEV)/ready
	$(DEV)/$(BIN)/ruff format --check .

lint: $(DEV)/ready
	$(DEV)/$(BIN)/ruff check .

types: $(DEV)/ready
	$(DEV)/$(BIN)/mypy visrt tests

layers: $(DEV)/ready
	$(DEV)/$(BIN)/lint-imports

tests: test

# Time by stage, streams, length, objects and size of the shipped bundles; a page with plots in out/bench.html.
bench: $(DEV)/ready
	mkdir -p out
	$(DEV)/$(BIN)/visrt bench --bundle $(BUNDLE) --bundle $(BUNDLE)-int8 --clip $(CLIP) \
		--in-flight 1 --in-flight 3 --streams 1,2,4 --live-fps 10 \
		--length 1000 --objects 1,10,100 --queries 100,200 --heights 360,720,1080 --roofline 20 \
		--json out/bench.jsonl --html out/bench.html

# RSS over the demo clip, looped for 5,000 frames; the README's figure.
memory: $(RUNTIME)/ready
	$(RUNTIME)/$(BIN)/python -m visrt.benchmarks.speed.memory --bundle $(BUNDLE) --clip $(CLIP) --frames 5000

# On a machine with an NVIDIA GPU: builds, verifies and times every engine there is; in an environment with them installed.
# `make gpu-check CHECK="--random all"` makes and checks networks of every family.
CHECK := --bundle $(BUNDLE) $(BUNDLE)-fp16 $(BUNDLE)-int8
gpu-check:
	$(PYTHON) -m visrt.benchmarks.gpu_check $(CHECK) --clip $(CLIP)

# The runtime alone: onnxruntime, no torch.
$(RUNTIME)/ready: setup.py pyproject.toml
	$(PYTHON) -m venv $(RUNTIME)
	$(RUNTIME)/$(BIN)/pip install --quiet --editable ".[cpu]"
	touch $@

# torch first and pinned, so that no later requirement pulls another build of it.
$(DEV)/ready: setup.py pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/$(BIN)/pip install --quiet --constraint tests/constraints.txt "$(TORCH)"
	$(DEV)/$(BIN)/pip install --quiet --constraint tests/constraints.txt --editable ".[cpu,train,eval,dev]"
	$(DEV)/$(BIN)/pip install --quiet --constraint tests/constraints.txt --requirement tests/requirements-rtx.txt || \
		echo "TensorRT-RTX wheels are not to be had here: the rtx tests will skip and say so"
	touch $@

clean:
	rm -rf .venv out build dist *.egg-info
