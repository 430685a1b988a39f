#!/usr/bin/env bash
# The fast test suite on a fresh machine: makes .venv if needed, installs the pinned versions, runs pytest on two cores.
# Use another environment with VFTOK_VENV=path, another Python (3.11 or newer) with PYTHON=python3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VFTOK_VENV:-.venv}"
if [[ ! -x "$venv/bin/python" ]]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[dev,hub]'
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --durations=10 "$@"
