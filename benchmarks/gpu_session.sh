#!/usr/bin/env bash
# A session on a machine with a GPU and no network, in stages of at most ten minutes:
#
#     bash benchmarks/gpu_session.sh 0 results    # then 1, 2, 3, 4, 5
#
# 0 tests and times what has never run on a GPU, in nine minutes: products in CUDA C++, fp32 by
# cuBLAS, small batches from graphs. 1 tests what decides everything else, and times the most important
# problems; 2 runs all GPU tests and times tiles; 3 times the rest; 4 times whole steps of training,
# 5 word weights (both need transformers and sentence-transformers there). The first that runs
# installs. What was written is in the folder, whatever failed.
# Wheels of peers are taken from the folder $WHEELS, if there is one.
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:?stage 0, 1, 2, 3, 4 or 5}
out=$(mkdir -p "${2:?a folder for the results}" && cd "$2" && pwd)

# Compilation takes most of the tests' time, and pytest-xdist shares it out.
PARALLEL=$(python3 -c "import xdist" 2>/dev/null && echo "-n 12 --dist worksteal")

log() { "$@" 2>&1 | tee -a "$out/stage-$stage.log"; }

install() {
	log python3 -m pip install --no-build-isolation --no-deps --quiet -e .
	[ -d "${WHEELS:-}" ] && log python3 -m pip install --no-deps --no-index --quiet "$WHEELS"/*.whl
}

python3 -c "import simcse_fast.kernels" 2>/dev/null || install
if [ "$stage" = 0 ]; then
	# A kernel that waits for ever is ended by its time; -x, because a fault spoils what follows.
	log python3 -c "import simcse_fast as s; print(s.backends()['cuda'])"
	if log timeout -k 5 60 python3 -m pytest -q -x -m gpu tests/test_products_cuda.py; then
		log timeout -k 5 80 python3 -m pytest -q -m gpu $PARALLEL tests/test_info_nce_cuda.py
		mkdir -p "$out/cuda"
		log timeout 75 python3 -m benchmarks.bench_gpu --part cuda --minutes 1.2 --seconds 0.3 --output "$out/cuda"
		log timeout 45 python3 -m benchmarks.tune_gpu --entries 3 --seconds 0.1 --output "$out/cuda"
		log timeout 30 python3 -m benchmarks.profile_gpu --methods "simcse_fast cuda" --problems 2 \
			--output "$out/cuda"
	else
		log timeout 50 compute-sanitizer python3 -m pytest -q -x -m gpu tests/test_products_cuda.py
	fi
	log timeout 30 python3 -m benchmarks.bench_products --seconds 0.15 --output "$out"
	log timeout 60 python3 -m benchmarks.bench_uniformity_gpu --output "$out"
	log timeout 100 python3 -m pytest -q -m gpu $PARALLEL --maxfail 60 tests/test_info_nce_gpu.py \
		tests/test_info_nce_graphs.py tests/test_info_nce_triton_panels.py \
		-k "graph or panels or streams or waits or float32"
	log timeout 75 python3 -m benchmarks.bench_graphs --seconds 0.4 --output "$out"
	mkdir -p "$out/fp32"
	log timeout 90 python3 -m benchmarks.bench_gpu --part fp32 --minutes 1.3 --seconds 0.3 --output "$out/fp32"
elif [ "$stage" = 1 ]; then
	log nvidia-smi
	log python3 -c "import simcse_fast as s, torch, triton
print(torch.__version__, triton.__version__, *s.backends().items(), sep='\n')"
	log timeout 200 python3 -m pytest -q $PARALLEL tests/test_info_nce_gpu.py \
		-k "(sizes and (63-rows or 2049-rows) and (768 or 128)) or graph or waits or other_streams"
	log timeout 330 python3 -m benchmarks.bench_gpu --minutes 5 --output "$out"
elif [ "$stage" = 2 ]; then
	log timeout 300 python3 -m pytest -q -m gpu $PARALLEL --durations=10 --continue-on-collection-errors \
		tests/test_info_nce_*.py
	log timeout 280 python3 -m benchmarks.tune_gpu --jobs 12 --minutes 3 --output "$out"
elif [ "$stage" = 3 ]; then
	log timeout 580 python3 -m benchmarks.bench_gpu --minutes 9 --resume --output "$out"
elif [ "$stage" = 4 ]; then
	log timeout 580 python3 -m benchmarks.bench_training --device cuda --output "$out"
else
	log timeout 120 python3 -m pytest -q -m gpu tests/test_path_integral_triton.py
	log timeout 460 python3 -m benchmarks.bench_attribution --device cuda --output "$out"
fi
cp -r benchmarks/results/info_nce-nvidia-* "$out" 2>/dev/null || true
