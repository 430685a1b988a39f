#!/usr/bin/env bash
# The training step of configs/t2v.py:mini beside PyTorch's, in turns:
# `TORCH=/venv/bin/python TOKENS=/tmp/walk/tokens bash launch/peers/train.sh`. TOKENS is a set of tokenize_dataset.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
for _ in 1 2 3; do
  "${PYTHON:-.venv/bin/python}" -m vftok.tools.bench_step --config=configs/t2v.py:mini --config.data.sources="tokens:directory=$TOKENS" |
    grep -E 'step_s|matmul'
  "${TORCH:-python3}" launch/peers/torch_train.py --vocab="${VOCAB:-1000}" "$@"
done
