#!/usr/bin/env bash
# HMQ (Habi et al. 2020, arXiv:2007.09952) on CIFAR-10: ResNet-20 beside uniform quantization (10 epochs a row, fits a
# CPU), and figure 3: ResNet-18 over target rates at activation compression 4 and 8 (50 epochs a row; 200 for its float
# network, unless RESNET18_WEIGHTS=FILE gives one).
# Needs CIFAR10_DIR and RESNET20_WEIGHTS=FILE; without CIFAR10_DIR, rehearses on embedded data and says so.
# One row: bash reproduce/hmq_cifar10.sh --rows hmq_wcr16_acr4. Also --seeds, --list, --force, --devices.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n "${CIFAR10_DIR:-}" && ! -e "$CIFAR10_DIR" ]]; then
    echo "error: CIFAR10_DIR=$CIFAR10_DIR does not exist: set it to the folder that holds cifar10.npz or the batches" >&2
    exit 2
fi
source reproduce/environment.sh
tables=(hmq/cifar10_resnet20 hmq/cifar10_resnet18)
if [[ -z "${CIFAR10_DIR:-}" && " $* " != *" --data.root"* ]]; then
    echo "CIFAR10_DIR is not set: rehearsing on embedded data; no number of CIFAR-10 comes out of this"
    exec "$PY" -m reproduce run "${tables[@]}" --rehearse "$@"
fi
exec "$PY" -m reproduce run "${tables[@]}" "$@"
