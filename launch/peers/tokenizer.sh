#!/usr/bin/env bash
# Rows of the tokenizer's bench beside PyTorch's, in turns: `TORCH=/venv/bin/python bash launch/peers/tokenizer.sh encode`
# TORCH is a Python with torch, PYTHON one with vftok. Arguments: how the names of rows begin; FORMS of the peer.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
for row in "$@"; do
  for _ in 1 2; do
    "${PYTHON:-.venv/bin/python}" -m vftok.tools.bench tokenizer --skip-vae --only="$row" > /dev/null
    "${TORCH:-python3}" launch/peers/torch_tokenizer.py --forms="${FORMS:-eager}" --only="$row" > /dev/null
  done
done
