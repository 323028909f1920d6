#!/usr/bin/env bash
# Make the embedded detector again: originals, trunk, adapter and linear probe, into WORK.
#   recipes/embedded/make.sh CORPUS CLONES TEACHER WORK
# CORPUS holds manifest.csv, originals.csv and images; CLONES the git clones of the repositories in originals.csv
# (the first step names each one that is missing); TEACHER the ViT-Ti/16
# (config.json, model.safetensors). To put the result into the package:
#   cp -r WORK/trunk/{config.json,model.safetensors} src/clipmole/detectors/embedded/backbone/
#   cp WORK/adapter/{config.json,adapter.safetensors,calibration.json,train.json,README.md} src/clipmole/detectors/embedded/adapter/
# but not its train.html, which shows images of the corpus.
set -euo pipefail
[ $# -eq 4 ] || { echo "usage: $0 CORPUS CLONES TEACHER WORK" >&2; exit 2; }
corpus=$1 clones=$2 teacher=$3 work=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python "$here/originals.py" "$corpus/originals.csv" --clones "$clones" --out "$work/originals"
python "$here/trunk.py" "$work/originals/manifest.csv" --teacher "$teacher" --out "$work/trunk"
python "$here/adapter.py" --originals "$work/originals" --corpus "$corpus" --trunk "$work/trunk" --out "$work"
