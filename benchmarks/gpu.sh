#!/usr/bin/env bash
# Every figure of a CUDA device, in one call of at most nine minutes and without a network (docs/gpu.md):
#
#   benchmarks/gpu.sh [--wheels FOLDER] [--out FOLDER]   every figure, the most important first
#   benchmarks/gpu.sh --only bert_base masking           some figures alone
#   benchmarks/gpu.sh --toy                              the same code on a CPU, at toy size
#
# --wheels: a folder with wheels of what this machine's Python lacks. They are unpacked beside what it has, so it
# keeps its own torch. The Python is $PYTHON, or .venv of this folder, or python3. Other arguments go to
# `python -m benchmarks.gpu`. The last line printed is one JSON object.
set -euo pipefail

wheels=""
arguments=(--began "$(date +%s)")
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) wheels="$(cd "$2" && pwd)"; shift 2 ;;
    --out) mkdir -p "$2"; arguments+=(--out "$(cd "$2" && pwd)"); shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
  python=.venv/bin/python
fi
beside="${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "$wheels" ]; then
  if ! compgen -G "$wheels/*.whl" >/dev/null; then
    echo "gpu.sh: there is no wheel in $wheels" >&2
    exit 2
  fi
  unpacked="$(mktemp -d)"
  trap 'rm -rf "$unpacked"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$unpacked" "$wheels"/*.whl
  beside=":$unpacked$beside"
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
export PYTHONPATH="$PWD/src:$PWD$beside"
export PYTHONUNBUFFERED=1

missing="$("$python" - <<'PYTHON'
from importlib.util import find_spec

needed = "torch transformers accelerate tokenizers safetensors numba numpy yaml typer tqdm fsspec"
needed += " pydantic pydantic_core annotated_types typing_inspection"
print(*(name for name in needed.split() if find_spec(name) is None))
PYTHON
)"
if [ -n "$missing" ]; then
  echo "gpu.sh: $python lacks $missing: put their wheels into a folder and name it with --wheels" >&2
  exit 2
fi
"$python" -m benchmarks.gpu "${arguments[@]}"
