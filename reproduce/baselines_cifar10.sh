#!/usr/bin/env bash
# The lecture's and the tables' baselines on equal terms: ResNet-20 on CIFAR-10, 3 epochs a row, fits a CPU. Runs what has
# not run yet, then compares: table, pictures and one HTML page in runs/.
# Needs CIFAR10_DIR and RESNET20_WEIGHTS=FILE; without CIFAR10_DIR, rehearses on embedded data and says so.
# One row: bash reproduce/baselines_cifar10.sh --rows lsq_w2a2. Also --seeds, --list, --force, --devices.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n "${CIFAR10_DIR:-}" && ! -e "$CIFAR10_DIR" ]]; then
    echo "error: CIFAR10_DIR=$CIFAR10_DIR does not exist: set it to the folder that holds cifar10.npz or the batches" >&2
    exit 2
fi
source reproduce/environment.sh
if [[ -z "${CIFAR10_DIR:-}" && " $* " != *" --data.root"* ]]; then
    echo "CIFAR10_DIR is not set: rehearsing on embedded data; no number of CIFAR-10 comes out of this"
    exec "$PY" -m reproduce run lecture/cifar10_equal_terms --rehearse "$@"
fi
"$PY" -m reproduce run lecture/cifar10_equal_terms "$@"
if [[ " $* " != *" --list "* ]]; then
    exec "$PY" -m reproduce compare lecture/cifar10_equal_terms
fi
