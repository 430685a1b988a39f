#!/usr/bin/env bash
# The fast test suite on a fresh machine: makes .venv if needed, installs the pinned versions, looks at style, runs
# pytest on two cores.
# Another Python (3.11 to 3.13) with PYTHON=python3.13, in an environment of its own (.venv-3.13) unless VFTOK_VENV says where.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n "${PYTHON:-}" ]]; then
  version="$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
fi
venv="${VFTOK_VENV:-.venv${version:+-$version}}"
if [[ ! -x "$venv/bin/python" ]]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[dev,hub]'
"$venv/bin/ruff" check --quiet .
"$venv/bin/ruff" format --check --quiet .
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --durations=10 "$@"
