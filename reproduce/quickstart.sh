#!/usr/bin/env bash
# A float net on the embedded digits, HMQ at two target rates and uniform quantization of the same sizes: side-by-side
# table, packed models, plots, TensorBoard log in runs/quickstart. About a minute after installation; needs no data.
# Options: bash reproduce/quickstart.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source reproduce/environment.sh
exec "$PY" -m reproduce.quickstart "$@"
