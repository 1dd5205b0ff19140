#!/usr/bin/env bash
# Lint, import directions, tests. bash tests/run.sh [--full] [pytest's arguments]; --full adds the slow tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source reproduce/environment.sh
markers="not slow"
arguments=()
for argument in "$@"; do
  if [ "$argument" = "--full" ]; then markers=""; else arguments+=("$argument"); fi
done
"$PY" -m ruff check .
"$VENV/bin/lint-imports"
# Two processes of one thread each: the networks of the tests are too small for threads to pay. A file stays together,
# because its tests share what they trained.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
exec "$PY" -m pytest -n 2 --dist loadfile -m "$markers" "${arguments[@]+"${arguments[@]}"}"
