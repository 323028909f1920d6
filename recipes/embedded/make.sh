#!/usr/bin/env bash
# Make the embedded detector again: originals, trunk, adapter and linear probe, into WORK.
#   recipes/embedded/make.sh CORPUS CLONES WORK
# CORPUS holds manifest.csv, originals.csv and images; CLONES the git clones of the repositories in originals.csv
# (the first step names each one that is missing). To put the result into the package:
#   cp -r WORK/trunk/{config.json,model.safetensors} src/clipmole/embedded/backbone/
#   cp -r WORK/adapter src/clipmole/embedded/
set -euo pipefail
[ $# -eq 3 ] || { echo "usage: $0 CORPUS CLONES WORK" >&2; exit 2; }
corpus=$1 clones=$2 work=$3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python "$here/originals.py" "$corpus/originals.csv" --clones "$clones" --out "$work/originals"
python "$here/trunk.py" "$work/originals/manifest.csv" --out "$work/trunk"
python "$here/adapter.py" --originals "$work/originals" --corpus "$corpus" --trunk "$work/trunk" --out "$work"
