# Every target sets up what it needs; the stamps in .venv say what is there already. Once set up,
# nothing here needs a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

CXX_SOURCES := $(wildcard csrc/*.h csrc/*/* tests/native/* tests/emulated/*)
SETUP := $(VENV)/.base pyproject.toml setup.py $(wildcard csrc/*.h csrc/*/*)
# Originals to compare with. Of the first two only the loss files are read, by path; their own
# requirements (torchvision, timm, ...) are not wanted.
PEERS := open_clip_torch lightly captum
GPU_PEERS := memeff siglip-kernel inf-cl cut-cross-entropy liger-kernel
TRITON := 3.9.0
SITE := mkdocs-material "mkdocstrings[python]" ruff
SANITIZERS := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint types sanitize docs bench bench-gpu tune-gpu test-gpu wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: $(VENV)/.demo ## count, train, explain on real text; writes runs/demo/report.html
	$(BIN)/simcse-fast demo

# Most tests leave one of two processors idle; a file stays with one worker, for what its tests share.
test: $(VENV)/.test ## the whole test suite; ARGS="-k name" for a part, ARGS="-n 0 ..." without workers
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.test ## style of Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

# mypy cannot follow an editable install whose folders have other names than its packages.
types: $(VENV)/.test ## mypy --strict
	rm -rf build/typecheck
	$(BIN)/python setup.py -q build_py --build-lib build/typecheck
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p simcse_fast

# Leaks are not looked for: the OpenMP runtime keeps its thread pool until the process ends.
sanitize: ## the native library's tests under AddressSanitizer and UBSan
	mkdir -p build/sanitize
	$(CXX) -std=c++17 $(SANITIZERS) -fopenmp -Wall -Wextra -Wno-psabi -Icsrc csrc/cpu/*.cpp \
		tests/native/*.cpp -o build/sanitize/test_native
	ASAN_OPTIONS=detect_leaks=0 build/sanitize/test_native

# It reads the package's sources without importing them.
docs: $(VENV)/.docs ## the site, into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.test ## CPU benchmarks; results go to benchmarks/results
	$(INSTALL) --no-deps cut-cross-entropy
	$(BIN)/python -m benchmarks.bench_info_nce
	$(BIN)/python -m benchmarks.bench_information
	$(BIN)/python -m benchmarks.information_chance
	$(BIN)/python -m benchmarks.bench_training
	$(BIN)/python -m benchmarks.bench_static
	$(BIN)/python -m benchmarks.bench_attribution
	$(BIN)/python -m benchmarks.attribution_rules
	$(BIN)/python -m benchmarks.word_weights
	$(BIN)/python -m benchmarks.bench_attention
	$(BIN)/python -m benchmarks.bench_uniformity
	$(BIN)/python -m benchmarks.bench_evaluation
	$(BIN)/python -m benchmarks.bench_sparsity
	$(BIN)/python -m benchmarks.bench_study static
	$(BIN)/python -m benchmarks.bench_study minilm
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.bench_import

# A peer that cannot be installed gets a row that says so.
bench-gpu: $(VENV)/.test ## GPU benchmarks; ARGS=--rehearse runs them on the CPU
	for peer in $(GPU_PEERS); do $(INSTALL) --no-deps $$peer || true; done
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)
	$(BIN)/python -m benchmarks.bench_products $(ARGS)
	$(BIN)/python -m benchmarks.bench_uniformity_gpu $(ARGS)
	$(BIN)/python -m benchmarks.bench_training --device cuda $(ARGS)
	$(BIN)/python -m benchmarks.bench_attribution --device cuda $(ARGS)

tune-gpu: $(VENV)/.test ## time the tiles of the Triton kernels on the GPU at hand
	$(BIN)/python -m benchmarks.tune_gpu $(ARGS)

test-gpu: $(VENV)/.test ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu $(ARGS)

# auditwheel names the oldest glibc that will do. libgomp stays out: it is torch's that must be used.
wheel: $(VENV)/.test ## source distribution, and from it the wheel, into dist
	rm -rf dist
	SIMCSE_FAST_REQUIRE_NATIVE=1 $(BIN)/python -m build --no-isolation --outdir dist .
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir dist \
		dist/*-linux_*.whl
	rm dist/*-linux_*.whl

clean: ## remove what the other targets made, runs/ aside
	rm -rf $(VENV) build dist *.egg-info kernels/*.so .mypy_cache .pytest_cache .ruff_cache
	rm -rf .hypothesis .benchmarks

# torch comes first: with it in place nothing that depends on it brings another build of it.
$(VENV)/.base: constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer \
	is needed, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) pip setuptools wheel
	$(INSTALL) torch numpy
	touch $@

$(VENV)/.demo: $(SETUP)
	$(INSTALL) --no-build-isolation -e ".[demo]"
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(INSTALL) $(SITE)
	touch $@

# A build of torch with CUDA brings the Triton it was made for; beside one without, Triton's kernels
# are interpreted, and compiled for devices that are not here.
$(VENV)/.test: $(SETUP)
	$(INSTALL) --no-build-isolation -e ".[test,lint]"
	$(INSTALL) --no-deps $(PEERS)
	$(BIN)/python -c "import triton" 2>/dev/null || $(INSTALL) --no-deps triton==$(TRITON)
	touch $(VENV)/.demo $@
