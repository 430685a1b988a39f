"""The semantic probe: what can be read off the first k tokens of every step by a linear classifier.

Multinomial logistic regression on standardised inputs with an L2 penalty. Chance (always naming the most frequent
class of the test clips) and two ceilings, the same classifier on VAE latents and on pixels, belong beside every number.

With as many inputs as training clips or more, the inputs are first rotated onto the training clips' principal
directions: the fit of an L2 penalty lies in their span, so nothing is lost, and no fit has more inputs than clips. In
that basis the bound of Boehning and Lindsay (1988) on the Hessian is diagonal and gives every direction its own step
size: a hundred accelerated steps come close to the minimum, without a line search, for all attributes and penalties
at once. With few clips accuracy may fall as k grows, for inputs grow with it: take a thousand or more.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of half the squared weights, beside the mean log loss
ITERATIONS = 100
COMPONENTS = 512  # principal components that a ceiling is probed on
HELD = 0.25  # of the training clips choose the penalty
PART = 0.8  # of another training set is seen under one seed
MIN_CLIPS = 16  # fewer say nothing


@dataclasses.dataclass(frozen=True)
class ProbeTable:
  """What `probe` gives.

  Attributes:
    rows: {attribute: {row name: accuracy}}, row names "k1", "k2", ... and those of `extra`; means over seeds.
    spread: the same of the standard deviation over seeds, None for one seed.
    chance: {attribute: share of the most frequent class of the test clips}.
    classes: {attribute: how many occur}.
    keeps: the k of the rows, rising. trained, tested: clips under one seed. train_set: "" or what it was trained on.
  """

  rows: dict[str, dict[str, float]]
  spread: dict[str, dict[str, float | None]]
  chance: dict[str, float]
  classes: dict[str, int]
  keeps: tuple[int, ...]
  trained: int
  tested: int
  seeds: tuple[int, ...]
  train_set: str = ""

  def scalars(self) -> dict[str, float]:
    """{"probe/colour/k1": accuracy, "probe/colour/chance": ...} for a metric writer."""
    found = {f"probe/{a}/{name}": value for a, row in self.rows.items() for name, value in row.items()}
    return found | {f"probe/{a}/chance": value for a, value in self.chance.items()}

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  def facts(self) -> str:
    """What the numbers depend on, one sentence."""
    where = f"on {self.trained} clips" + (f" of {self.train_set}" if self.train_set else "")
    return (
      f"Accuracy of linear classifiers of the codes of the first k tokens of every step, trained {where}, tested on "
      f"{self.tested} they did not see, mean over {len(self.seeds)} splits; ceilings on {COMPONENTS} principal "
      f"components at most."
    )


def probe(
  codes_BxTxKxD,
  attributes: Mapping[str, Any],
  keeps: Sequence[int],
  seeds: Sequence[int] = (0, 1, 2),
  extra: Mapping[str, Any] | None = None,
  *,
  train: tuple[Any, Mapping[str, Any], Mapping[str, Any]] | None = None,
  train_set: str = "another set",
) -> ProbeTable:
  """Accuracy per attribute and k on clips that the classifier did not see.

  Each seed trains on a random half of the clips and tests on the other; a quarter of the training clips chooses the
  penalty, then all of them are fitted again.

  Args:
    codes_BxTxKxD: FSQ codes in [-1, 1].
    attributes: {name: int [B]}, -1 where unknown. One that has a single class, or none, is left out.
    keeps: how many of the K registers of each step are seen.
    seeds: of the splits.
    extra: {row name: float [B, F]} or of any shape after B: ceilings.
    train: (codes, attributes, extra) of another set to train on; then all clips given are tested on, and each seed
      trains on its own four fifths of that set.
    train_set: its name, for the table.

  Raises:
    ValueError: fewer than 16 clips, arrays of unequal length, or a k outside 1..K.
  """
  extra, keeps, seeds = dict(extra or {}), tuple(sorted(set(keeps))), tuple(seeds)
  codes_BxTxKxD = np.asarray(codes_BxTxKxD, np.float32)
  _check(codes_BxTxKxD, attributes, extra, keeps, seeds)
  if train is not None:
    _check(np.asarray(train[0]), train[1], train[2], keeps, seeds)
  n, known = len(codes_BxTxKxD), _classes(attributes, train[1] if train else None)
  if not known:
    raise ValueError(f"attributes are {', '.join(attributes) or 'none'}, expected one of two known classes or more.")
  splits = [_split(np.random.default_rng(seed), n, len(train[0]) if train else 0) for seed in seeds]
  y_AxB = np.stack([np.asarray(attributes[a], np.int32) for a in known])
  own_AxB = y_AxB if train is None else np.stack([np.asarray(train[1][a], np.int32) for a in known])
  counts_A = np.array(list(known.values()))

  inputs = {f"k{k}": lambda codes, _, k=k: codes[:, :, :k].reshape(len(codes), -1) for k in keeps}
  inputs |= {name: lambda _, extra, name=name: np.asarray(extra[name]).reshape(len(extra[name]), -1) for name in extra}
  scores_RxSxA = []
  for name, read in inputs.items():
    test_x = read(codes_BxTxKxD, extra).astype(np.float32)
    train_x = test_x if train is None else read(np.asarray(train[0]), train[2]).astype(np.float32)
    limit = COMPONENTS if name in extra else None
    run = lambda fit, test: _accuracy(train_x[fit], own_AxB[:, fit], test_x[test], y_AxB[:, test], counts_A, limit)  # noqa: B023
    scores_RxSxA.append([run(fit, test) for fit, test in splits])
  scores_RxSxA = np.array(scores_RxSxA)
  mean, chance_A = scores_RxSxA.mean(1), np.mean([_chance(y_AxB[:, test]) for _, test in splits], axis=0)
  spread = scores_RxSxA.std(1, ddof=1) if len(seeds) > 1 else None
  table = lambda x, i: {name: float(x[r, i]) for r, name in enumerate(inputs)}
  none = dict.fromkeys(inputs)
  return ProbeTable(
    rows={a: table(mean, i) for i, a in enumerate(known)},
    spread={a: none if spread is None else table(spread, i) for i, a in enumerate(known)},
    chance={a: float(chance_A[i]) for i, a in enumerate(known)},
    classes={a: int(np.unique(y[y >= 0]).size) for a, y in zip(known, y_AxB, strict=True)},
    keeps=keeps,
    trained=len(splits[0][0]),
    tested=len(splits[0][1]),
    seeds=seeds,
    train_set=train_set if train else "",
  )


def _split(rng, n: int, others: int) -> tuple[np.ndarray, np.ndarray]:
  """(numbers of training clips in random order, numbers of test clips)."""
  if others:
    return rng.permutation(others)[: int(PART * others)], np.arange(n)
  order = rng.permutation(n)
  return order[: n // 2], order[n // 2 :]


def _accuracy(x_nxF, y_Axn, test_mxF, test_Axm, classes_A, limit) -> np.ndarray:
  """[A]: accuracy on the test clips of what is fitted to the others, of attributes that are known there."""
  x, test = _rotated(x_nxF, test_mxF, limit)
  scale = np.square(x).mean(0)
  held = np.arange(x.shape[0]) < round(HELD * x.shape[0])
  known = y_Axn >= 0
  logits_off = np.where(np.arange(classes_A.max()) < classes_A[:, None], 0.0, -1e9).astype(np.float32)
  run = functools.partial(_fit, x, scale, np.maximum(y_Axn, 0), off_AxC=logits_off)
  penalties = np.broadcast_to(np.float32(PENALTIES), (len(y_Axn), len(PENALTIES)))
  weights = run(_weights(known & ~held), penalties_AxL=penalties)
  best = np.argmin(_log_loss(weights, x, np.maximum(y_Axn, 0), _weights(known & held), logits_off), axis=1)
  weights = run(_weights(known), penalties_AxL=np.float32(PENALTIES)[best][:, None])
  guess_Axm = np.asarray(_guess(weights, test, logits_off))[:, 0]
  counted = test_Axm >= 0
  return ((guess_Axm == test_Axm) & counted).sum(1) / np.maximum(counted.sum(1), 1)


def _rotated(x_nxF, test_mxF, limit):
  """Both standardised by the first, on the first's principal directions where these are fewer than the inputs."""
  mean, deviation = x_nxF.mean(0), x_nxF.std(0)
  deviation = np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, np.inf)  # what never changes becomes 0
  x, test = (x_nxF - mean) / deviation, (test_mxF - mean) / deviation
  n, f = x.shape
  if f < n:
    _, directions = np.linalg.eigh(x.T @ x)
  else:
    squares, left = np.linalg.eigh(x @ x.T)
    directions = x.T @ left / np.sqrt(np.maximum(squares, 1e-6 * squares[-1] + 1e-30))
  directions = directions[:, ::-1][:, :limit]
  return x @ directions, test @ directions


def _weights(known_Axn) -> np.ndarray:
  """float32 [A, n]: of the mean over known clips."""
  return (known_Axn / np.maximum(known_Axn.sum(1, keepdims=True), 1)).astype(np.float32)


@jax.jit
def _fit(x_nxF, scale_F, y_Axn, weights_Axn, *, penalties_AxL, off_AxC):
  """(W [A, L, F, C], bias [A, L, C]) that minimise mean log loss + penalty / 2 |W|^2: Nesterov steps with restarts."""
  classes, share_A = off_AxC.shape[1], weights_Axn.max(1) * x_nxF.shape[0]  # a subset has at most the whole's Hessian
  target_AxnxC = jax.nn.one_hot(y_Axn, classes) * weights_Axn[..., None]
  rate_AxLxFx1 = 1 / (0.5 * share_A[:, None, None] * scale_F + penalties_AxL[..., None] + 1e-9)[..., None]
  rate_AxLx1 = jnp.broadcast_to(1 / (0.5 * share_A[:, None, None]), (*penalties_AxL.shape, 1))

  def gradient(w, b):
    p = jax.nn.softmax(jnp.einsum("nF,ALFC->ALnC", x_nxF, w) + b[:, :, None] + off_AxC[:, None, None])
    error = p * weights_Axn[:, None, :, None] - target_AxnxC[:, None]
    return jnp.einsum("nF,ALnC->ALFC", x_nxF, error) + penalties_AxL[..., None, None] * w, error.sum(2)

  def step(carry, _):
    w, b, ahead_w, ahead_b, age = carry
    dw, db = gradient(ahead_w, ahead_b)
    next_w, next_b = ahead_w - rate_AxLxFx1 * dw, ahead_b - rate_AxLx1 * db
    uphill = (dw * (next_w - w)).sum((2, 3)) + (db * (next_b - b)).sum(2) > 0
    age = jnp.where(uphill, 0.0, age + 1)
    momentum = (age / (age + 3))[..., None]
    ahead = next_w + momentum[..., None] * (next_w - w), next_b + momentum * (next_b - b)
    return (next_w, next_b, *ahead, age), None

  zeros = jnp.zeros((*penalties_AxL.shape, x_nxF.shape[1], classes)), jnp.zeros((*penalties_AxL.shape, classes))
  (w, b, *_), _ = jax.lax.scan(step, (*zeros, *zeros, jnp.zeros(penalties_AxL.shape)), None, ITERATIONS)
  return w, b


@jax.jit
def _log_loss(weights, x_nxF, y_Axn, weights_Axn, off_AxC):
  """[A, L]: mean log loss of the clips that `weights_Axn` counts."""
  w, b = weights
  logits = jnp.einsum("nF,ALFC->ALnC", x_nxF, w) + b[:, :, None] + off_AxC[:, None, None]
  own = jnp.take_along_axis(jax.nn.log_softmax(logits), y_Axn[:, None, :, None], axis=3)[..., 0]
  return -(own * weights_Axn[:, None]).sum(2)


@jax.jit
def _guess(weights, x_mxF, off_AxC):
  w, b = weights
  return (jnp.einsum("mF,ALFC->ALmC", x_mxF, w) + b[:, :, None] + off_AxC[:, None, None]).argmax(-1)


def _chance(y_AxB) -> np.ndarray:
  known = [y[y >= 0] for y in y_AxB]
  return np.array([np.bincount(y).max() / len(y) if len(y) else 0.0 for y in known])


def _classes(attributes, others) -> dict[str, int]:
  """{attribute: 1 + the largest class} of those that differ between clips, here and in the other set."""
  found = {}
  for name, values in attributes.items():
    sets = [np.asarray(values), *([np.asarray(others[name])] if others and name in others else [])]
    if len(sets) == 1 + (others is not None) and all(np.unique(v[v >= 0]).size > 1 for v in sets):
      found[name] = 1 + max(int(v.max()) for v in sets)
  return found


def _check(codes, attributes, extra, keeps, seeds) -> None:
  if codes.ndim != 4 or len(codes) < MIN_CLIPS:
    raise ValueError(f"codes are {codes.shape}, expected [B, T, K, D] of at least {MIN_CLIPS} clips: probe more.")
  for name, x in {**attributes, **extra}.items():
    if len(x) != len(codes):
      raise ValueError(f"{name} has {len(x)} clips, expected {len(codes)} as the codes: give one entry per clip.")
  if not keeps or not seeds or min(keeps) < 1 or max(keeps) > codes.shape[2]:
    raise ValueError(f"keeps are {keeps} and seeds {seeds}, expected one or more each, keeps of 1..{codes.shape[2]}.")
