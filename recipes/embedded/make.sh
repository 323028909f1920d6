#!/usr/bin/env bash
# Make the trunk of the embedded detector again: originals and trunk, into WORK.
#   recipes/embedded/make.sh CORPUS CLONES TEACHER WORK
# CORPUS holds originals.csv; CLONES the git clones of the repositories in it (the first step names each one that is
# missing); TEACHER the ViT-Ti/16 (config.json, model.safetensors). To put the result into the package:
#   cp -r WORK/trunk/{config.json,model.safetensors} src/clipmole/detectors/embedded/backbone/
# README.md says how the adapter is made on it.
set -euo pipefail
[ $# -eq 4 ] || { echo "usage: $0 CORPUS CLONES TEACHER WORK" >&2; exit 2; }
corpus=$1 clones=$2 teacher=$3 work=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python "$here/originals.py" "$corpus/originals.csv" --clones "$clones" --out "$work/originals"
python "$here/trunk.py" "$work/originals/manifest.csv" --teacher "$teacher" --out "$work/trunk"
