#!/bin/sh
# The first steps of a stranger: builds the wheel, installs it into a fresh environment, and goes the
# README's way in an empty folder. First with the core alone, then with the extra `all`. Takes minutes and
# a package index; variables as in scripts/install.sh. Prints each command and what it said.
#   scripts/clean-install.sh [FOLDER]      FOLDER stays for a look; without one nothing is kept
set -eu
scripts=$(cd "$(dirname "$0")" && pwd)
if [ $# -gt 0 ]; then
    mkdir -p "$1" && place=$(cd "$1" && pwd)
else
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
fi
unset PYTHONPATH
export HF_HUB_OFFLINE=1  # nothing below needs the hub

"${PYTHON:-python3}" -m pip wheel --quiet --no-deps --wheel-dir "$place/wheel" "$scripts/.."
WHEEL=$(ls "$place"/wheel/chronomask-*.whl)
VENV=$place/env
export WHEEL VENV
mkdir -p "$place/empty"

says() {  # a command that must end well
    echo "\$ $*"
    (cd "$place/empty" && PATH="$VENV/bin:$PATH" "$@")
}

refuses() {  # words that the refusal must hold, then a command that must be refused
    words=$1
    shift
    echo "\$ $*"
    code=0
    said=$(cd "$place/empty" && PATH="$VENV/bin:$PATH" "$@" 2>&1) || code=$?
    echo "$said"
    [ "$code" -eq 2 ] || { echo "exit code $code, not 2" >&2; exit 1; }
    case $said in *"$words"*) ;; *) echo "it does not say: $words" >&2; exit 1 ;; esac
}

cp "$scripts/../README.md" "$place/empty/text.txt"
"$scripts/install.sh"
says chronomask --version
says chronomask recipes
says python -c 'import chronomask as cm; print(cm.ratio.Linear(start=0.30, end=0.15).at(0.5))'
says chronomask inspect "What a model reads, and what it must guess."
refuses "did you mean 'bert-tiny'?" chronomask pretrain bert-tny
refuses "--data DATA" chronomask pretrain --out run
refuses "'chronomask[prepare]'" chronomask prepare text.txt --out data
refuses "'chronomask[prepare]'" chronomask quickstart
refuses "'chronomask[report]'" chronomask report run

"$scripts/install.sh" all
says chronomask prepare text.txt --out data --vocab-size 500 --held-out 0.1 --quiet
says chronomask data verify data
says chronomask pretrain bert-tiny --data data --out run --steps 20 --rows 4 --quiet
says chronomask pretrain --out run --resume --quiet
says chronomask report run
says chronomask quickstart --steps 20 --quiet
echo "a clean installation goes all the way"
