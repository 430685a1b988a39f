"""What tests of text encoders share."""

import numpy as np

DIM, DEPTH, HEADS, HEAD, HIDDEN, VOCAB = 12, 3, 2, 5, 20, 64


def softmax(x):
  p = np.exp(x - x.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def padded(lengths, width, vocab=VOCAB):
  rng = np.random.default_rng(3)
  mask = np.arange(width) < np.array(lengths)[:, None]
  return np.where(mask, rng.integers(1, vocab, mask.shape), 0).astype(np.int32), mask
