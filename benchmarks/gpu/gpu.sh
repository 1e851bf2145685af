#!/usr/bin/env bash
# The prepared run on a bare GPU machine: benchmarks/gpu/gpu.sh CALL OUT [--small] [--only NAME …]
# It needs torch, triton, transformers, pytest and pytest-benchmark for a Python of 3.11 or later. What else the run wants
# (diffusers, importlib-metadata) lies as wheels in .whl/; `make gpu-wheels` collects them. Nothing is built or downloaded.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
work=${TMPDIR:-/tmp}/fairy-gpu
mkdir -p "$work/site" "$work/namespace/fairy" "$work/cache"
if compgen -G '.whl/*.whl' >/dev/null && ! "$python" -c 'import diffusers' 2>/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" .whl/*.whl
fi
for folder in kernels export engines runtime benchmarks; do
    ln -sfn "$PWD/$folder" "$work/namespace/fairy/$folder"
done
export PYTHONPATH="$work/namespace:$work/site${PYTHONPATH:+:$PYTHONPATH}"
export TRITON_CACHE_DIR="$work/cache/triton" TORCHINDUCTOR_CACHE_DIR="$work/cache/inductor"
export FAIRY_STORE="$work/store" HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
exec "$python" -P -m fairy.benchmarks.gpu "$@"
