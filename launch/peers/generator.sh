#!/usr/bin/env bash
# Decoding beside PyTorch's, in turns: `TORCH=/venv/bin/python bash launch/peers/generator.sh [--slots=64 ...]`
# TORCH is a Python with torch, PYTHON one with vftok. Prints JSON lines: ours and the peer's, twice each, per batch size.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
for batch in ${BATCHES:-1 8}; do
  for _ in 1 2; do
    "${PYTHON:-.venv/bin/python}" -m vftok.tools.bench_generator --cached-only --batch="$batch" "$@"
    "${TORCH:-python3}" launch/peers/torch_generator.py --batch="$batch" "$@"
  done
done
