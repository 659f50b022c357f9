#!/usr/bin/env bash
# Every figure of a CUDA device, in one call of at most nine minutes and without a network:
#
#   benchmarks/gpu.sh [--wheels FOLDER] [--out FOLDER]     on a machine with a CUDA device
#   benchmarks/gpu.sh --only bert_base --only masking      some figures alone
#   benchmarks/gpu.sh --toy                                the same code on a CPU, at toy size
#
# --wheels: a folder of wheels (the package and what it needs), installed into a fresh environment with
# pip --no-index; without it the environment that is active, or .venv of this folder, is used. Other
# arguments go to `python -m benchmarks.gpu`. The last line printed is one JSON object.
set -euo pipefail
cd "$(dirname "$0")/.."

wheels=""
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) wheels="$2"; shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done

python="${PYTHON:-python3}"
if [ -n "$wheels" ]; then
  environment="$(mktemp -d)/venv"
  "$python" -m venv "$environment"
  "$environment/bin/pip" install --quiet --no-index --find-links "$wheels" "chronomask[trainer]"
  "$environment/bin/pip" install --quiet --no-index --find-links "$wheels" pytest ||
    echo "no wheel of pytest: the tests that need CUDA will fail" >&2
  python="$environment/bin/python"
elif [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
  python=.venv/bin/python
fi

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu ${arguments[@]+"${arguments[@]}"}
