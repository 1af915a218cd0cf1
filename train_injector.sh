#!/usr/bin/env bash
# Trains an injector for smollm2-135m: ./train_injector.sh DATA [WORKSPACE] [flags of `npt train-injector`, such as --resume]
# DATA is a folder with counterfact_train.json, counterfact_dev.json, zsre_dev.json (whose subjects are left out) and
# general_text.jsonl. Two hours on two cores without other work; interrupted, it continues with --resume. The injector is then in the workspace.
set -euo pipefail
cd "$(dirname "$0")"
data=${1:?the folder with the data}; shift
workspace=injector-workspace
if [[ $# -gt 0 && $1 != --* ]]; then workspace=$1; shift; fi
python=.venv/bin/python
[[ -x $python ]] || python=python3
[[ -e $workspace ]] || "$python" -m neuroplastic.cli convert smollm2-135m "$workspace"
exec "$python" -m neuroplastic.cli train-injector "$workspace" \
    --data "$data/counterfact_train.json" \
    --without "$data/counterfact_dev.json" --without "$data/zsre_dev.json" \
    --text "$data/general_text.jsonl" \
    --seed 1 "$@"
