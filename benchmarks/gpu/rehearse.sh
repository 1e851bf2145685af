#!/usr/bin/env bash
# Rehearse the run on a GPU on a CPU, as `make gpu-rehearsal` does: a fresh environment with what such a machine has, a
# copy of the tracked files with the wheels that travel, both calls at small sizes. Fails where the limits do not fit the
# time that is lent, what travels is too large, a part fails, or a part that is stopped leaves no file.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top"
for python in "${PYTHON312:-}" python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then break; fi
    python=
done
[ -n "$python" ] || { echo "The rehearsal needs Python 3.12; name it: make gpu-rehearsal PYTHON312=…" >&2; exit 1; }
here=build/gpu-rehearsal
mkdir -p "$here"
if ! cmp -s benchmarks/gpu/requirements-machine.txt "$here/installed.txt"; then
    rm -rf "$here/venv" "$here/installed.txt"
    "$python" -m venv "$here/venv"
    "$here/venv/bin/python" -m pip install --quiet --requirement benchmarks/gpu/requirements-machine.txt
    "$here/venv/bin/python" -m pip uninstall --quiet --yes diffusers importlib-metadata av
    cp benchmarks/gpu/requirements-machine.txt "$here/installed.txt"
fi
export PYTHON=$top/$here/venv/bin/python
if "$PYTHON" -c 'import diffusers' 2>/dev/null; then
    echo "diffusers is installed in the rehearsal's environment; it must come from the wheels" >&2
    exit 1
fi
rm -rf "$here/tree" "$here/out" "$here/tmp"
mkdir -p "$here/tree" "$here/out" "$here/tmp"
git ls-files -z | tar --null --create --files-from - | tar --extract --directory "$here/tree"
cp -r .whl "$here/tree/.whl"
bytes=$(du -sb "$here/tree" | cut -f1)
echo "what travels: $bytes bytes of 67108864"
[ "$bytes" -lt 67108864 ]
export TMPDIR=$top/$here/tmp OMP_NUM_THREADS=1
gpu="$here/tree/benchmarks/gpu/gpu.sh"
bash "$gpu" --list
bash "$gpu" --list | "$PYTHON" -c '
import re, sys
most, lent = map(float, re.search(r"at most (\S+) s with both starts, of (\S+) s", sys.stdin.read()).groups())
sys.exit(f"the limits add up to {most:g} s of {lent:g} s" if most > lent else 0)'
status=0
for call in 1 2; do
    bash "$gpu" "$call" "$top/$here/out" --small || status=1
done
(cd "$here/tree" && PYTHONPATH="$TMPDIR/fairy-gpu/namespace:$TMPDIR/fairy-gpu/site" \
    "$PYTHON" -P -m fairy.benchmarks.gpu.rehearsal "$top/$here/out") || status=1
exit $status
