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
"$PY" -c 'import sys; from importlinter.cli import lint_imports_command; sys.argv[0] = "lint-imports"; lint_imports_command()'
# Two processes of one thread each: the tests' networks are too small for threads to pay.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
exec "$PY" -m pytest -m "$markers" "${arguments[@]+"${arguments[@]}"}"
