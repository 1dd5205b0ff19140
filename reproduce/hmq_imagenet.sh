#!/usr/bin/env bash
# Tables 1-4 of HMQ (Habi et al. 2020, arXiv:2007.09952): ImageNet, four networks. Cost: 50 epochs a row and seed.
# Needs IMAGENET_DIR (holds train/ and val/); without it, rehearses the same pipeline on embedded data and says so.
# MobileNetV1's start weights: MOBILENET_V1_WEIGHTS=FILE. The others' come from torchvision and timm, or from
# MOBILENET_V2_WEIGHTS, RESNET50_WEIGHTS, EFFICIENTNET_B0_WEIGHTS.
# One row: bash reproduce/hmq_imagenet.sh --rows resnet50_wcr16. Also --seeds, --list, --force, --devices.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n "${IMAGENET_DIR:-}" && ! -d "$IMAGENET_DIR" ]]; then
    echo "error: IMAGENET_DIR=$IMAGENET_DIR is not a folder: set it to the folder that holds train/ and val/" >&2
    exit 2
fi
source reproduce/environment.sh
tables=(hmq/table1 hmq/table2a hmq/table2b hmq/table3 hmq/table4)
if [[ -z "${IMAGENET_DIR:-}" && " $* " != *" --data.root"* ]]; then
    echo "IMAGENET_DIR is not set: rehearsing on embedded data; no number of ImageNet comes out of this"
    exec "$PY" -m reproduce run "${tables[@]}" --rehearse "$@"
fi
exec "$PY" -m reproduce run hmq/baselines "${tables[@]}" "$@"
