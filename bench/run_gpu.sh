#!/usr/bin/env bash
# Everything that a GPU has to say, planned for ten minutes: the kernels beside their references, the tests marked gpu, the
# ablation, every suite, and the README's section. What does not fit into MINUTES is filed as "not run".
#
#     pip install -e '.[test]' && bench/run_gpu.sh
#     PYTHON=.venv/bin/python MINUTES=6 bench/run_gpu.sh OUT
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python}"
MINUTES="${MINUTES:-6}"
OUT="${1:-bench/results}"
vilt_fast() { "$PYTHON" -m vilt_fast.cli "$@"; }

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "no CUDA GPU here"'
mkdir -p "$OUT"
vilt_fast env
vilt_fast check | tee "$OUT/check.txt"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        timeout 90 compute-sanitizer --tool "$tool" "$PYTHON" -m vilt_fast.cli check --small | tail -n 5 | tee "$OUT/$tool.txt" ||
            echo "$tool: found something, or took longer than 90 s" | tee -a "$OUT/$tool.txt"
    done
fi
"$PYTHON" -m pytest -q -m gpu tests | tee /dev/stderr | tail -n 1 >"$OUT/gpu_tests.txt"
vilt_fast ablate --minutes 1 --out "$OUT"
vilt_fast bench --suite all --minutes "$MINUTES" --out "$OUT"
if [ "$OUT" = bench/results ]; then
    "$PYTHON" -m vilt_fast.bench.report || echo "no report: see above" >&2
fi
