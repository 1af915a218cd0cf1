#!/usr/bin/env bash
# Trains dual modulation on the top two layers of a model, from its closed form:
#   ./train_dual_modulation.sh [WORKSPACE [MODEL]] [flags of `npt train`, such as --steps 400]
# On several devices: LAUNCH="accelerate launch -m" ./train_dual_modulation.sh ... ; interrupted, it continues with --resume.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
workspace=dual-workspace model=smollm2-135m
if [[ $# -gt 0 && $1 != --* ]]; then workspace=$1; shift; fi
if [[ $# -gt 0 && $1 != --* ]]; then model=$1; shift; fi
python=$here/.venv/bin/python
[[ -x $python ]] || python=python3
if [[ ! -e $workspace ]]; then
    "$python" -m neuroplastic.cli convert "$model" "$workspace" --preset dual --layers top2
fi
# shellcheck disable=SC2206
launch=(${LAUNCH:-"$python" -m})
exec "${launch[@]}" neuroplastic.cli train "$workspace" --recipe "$here/recipes/dual.yaml" "$@"
