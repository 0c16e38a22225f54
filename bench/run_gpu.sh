#!/usr/bin/env bash
# A part of the GPU run, on a machine without a network: installs the checkout, then runs the part. See bench/README.md.
#
#     bench/run_gpu.sh --part 1 --out OUT
#     PYTHON=.venv/bin/python bench/run_gpu.sh --part 1 --out OUT --rehearse     tiny, on a CPU
#
# A checkout that was copied without its history says its commit in VILT_FAST_COMMIT, or in a file COMMIT.
set -uo pipefail # a step that fails must not end the others, so no -e
export VILT_FAST_CALLED_IN="$PWD" # where relative paths begin
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
if [ -z "${VILT_FAST_COMMIT:-}" ] && [ -f COMMIT ]; then VILT_FAST_COMMIT="$(cat COMMIT)"; fi
export VILT_FAST_COMMIT="${VILT_FAST_COMMIT:-}"

is_installed() { PYTHONSAFEPATH=1 "$PYTHON" -c 'import vilt_fast.bench.gpu_run, vilt_fast.kernels' 2>/dev/null; }

if ! is_installed; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-build-isolation --root-user-action ignore -e . && is_installed || {
        # An image whose setuptools is too old: the packages side by side, as they are installed.
        SITE="$(mktemp -d)"
        cp -r vilt_fast "$SITE/" && cp -r kernels reference bench "$SITE/vilt_fast/"
        # Without the safe path ./vilt_fast is found first, which has no kernels.
        export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
        echo "pip cannot install here; copied to $SITE"
    }
fi
exec "$PYTHON" -m vilt_fast.bench.gpu_run "$@"
