#!/bin/sh
# Installs chronomask with pinned versions into .venv; "$1" names the extras (default: none).
#
# torch first: from the package index, the plain Linux build of torch brings several gigabytes of CUDA
# libraries, so on a machine without an NVIDIA GPU only the CPU build is accepted.
#   TORCH_INDEX=URL   an extra index to look for the CPU build in (the one pytorch.org names for "CPU")
#   TORCH=default     take whatever build the index gives, CUDA libraries included
#   VENV=FOLDER       the environment to install into
#   WHEEL=FILE        install this wheel, not the source tree
set -eu
[ -z "${WHEEL:-}" ] || WHEEL=$(realpath "$WHEEL")
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
TORCH_VERSION=$(sed -n 's/^torch==//p' constraints.txt)

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "chronomask needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version). Set PYTHON=..." >&2
    exit 1
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

has_torch() {
    "$VENV/bin/python" - "$TORCH_VERSION" 2>/dev/null <<'PYTHON_CODE'
import sys
from importlib.metadata import version
sys.exit(version("torch").split("+")[0] != sys.argv[1])
PYTHON_CODE
}

if ! has_torch; then
    echo "installing torch $TORCH_VERSION"
    if [ "${TORCH:-auto}" = default ] || command -v nvidia-smi >/dev/null || [ "$(uname -s)" != Linux ]; then
        pip install "torch==$TORCH_VERSION"
    elif pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "torch==$TORCH_VERSION+cpu" 2>"$VENV/torch.log"; then
        :
    elif [ "$(uname -m)" != x86_64 ]; then
        pip install "torch==$TORCH_VERSION"
    else
        cat "$VENV/torch.log" >&2
        echo "No CPU build of torch $TORCH_VERSION was found, and this machine has no NVIDIA GPU." >&2
        echo "Name an index that has it:      make TORCH_INDEX=<address of PyTorch's CPU index> ..." >&2
        echo "or accept the CUDA libraries:   make TORCH=default ..." >&2
        exit 1
    fi
fi
echo "installing chronomask${1:+ with extras: $1}"
if [ -n "${WHEEL:-}" ]; then
    pip install --constraint constraints.txt "$WHEEL${1:+[$1]}"
else
    pip install --constraint constraints.txt --editable ".${1:+[$1]}"
fi
