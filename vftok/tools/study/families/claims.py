"""What the study says of each claim: a number per seed, its interval, and one of three verdicts.

Intervals are Student's t over seeds, 95 %, two-sided. A claim is "held" where the whole interval is on its side of the
bound, "not held" where all of it is on the other, else "not decided at this size". One seed decides nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

HELD, NOT_HELD, OPEN = "held", "not held", "not decided at this size"
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Attributes:
  claim: a sentence. of: whose it is, the paper's number where it has one.
  number: what `values` are, one for each seed that has them. bound: they are to lie above it.
  mean, low, high: of the values, None where there are too few. verdict: HELD, NOT_HELD or OPEN.
  """

  claim: str
  of: str
  number: str
  bound: float
  values: tuple[float, ...]
  mean: float | None
  low: float | None
  high: float | None
  verdict: str


def judged(claim: str, of: str, number: str, values: Sequence[float | None], bound: float = 0.0) -> Verdict:
  known = tuple(float(v) for v in values if v is not None and math.isfinite(v))
  mean, low, high = interval(known)
  verdict = OPEN if low is None else HELD if low > bound else NOT_HELD if high < bound else OPEN
  return Verdict(claim, of, number, bound, known, mean, low, high, verdict)


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
  """(mean, low, high); no interval of fewer than two."""
  if not values:
    return None, None, None
  mean = float(np.mean(values))
  if len(values) < 2:
    return mean, None, None
  from scipy import stats  # with JAX it is always there

  half = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
  return mean, mean - half, mean + half


def verdicts(
  tokenizers: Mapping[str, Mapping[int, dict]], generators: Mapping[str, Mapping[int, dict]]
) -> list[Verdict]:
  """All claims, by what is there.

  Args:
    tokenizers: {arm: {seed: what `jobs.Study.reconstruction` gives}}.
    generators: {arm: {seed: {depth: what `jobs.Study.generator` gives}}}.
  """
  out = []
  for arm, of in (("nested", "VideoFlexTok"), ("adaptok", "AdapTok")):
    out.append(
      judged(
        f"Quality of {arm} rises with every doubling of tokens.",
        of,
        "LPIPS that the smallest step is worth (PSNR, dB, without a net)",
        _each((arm,), tokenizers, smallest_step),
      )
    )
  for name in ("object", "colour", "motion"):
    out.append(
      judged(
        f"The first token of a step knows more of the {name} than the only token of a grid's.",
        "VideoFlexTok",
        "probe's accuracy, nested k = 1 less grid_16",
        _each(("nested", "grid_16"), tokenizers, lambda a, b, name=name: _less(known(a, name, 1), known(b, name, 1))),
      )
    )
  for keep, other in ((1, "grid_16"), (4, "grid_4")):
    out.append(
      judged(
        f"One nested tokenizer at {keep} token{'s' * (keep > 1)} a step is no worse than a grid trained for that rate.",
        "VideoFlexTok",
        f"LPIPS of {other} less that of nested at {keep} (PSNR, dB, without a net)",
        _each(("nested", other), tokenizers, lambda a, b, k=keep: quality(a, k) and _less(quality(a, k), best(b))),
      )
    )
  out.append(
    judged(
      "At the gFVD of the largest generator over a grid, one over nested tokens may be 5 times smaller.",
      "VideoFlexTok, 5 x",
      "how many times smaller",
      _each(("nested", "grid"), generators, times_smaller),
      bound=5.0,
    )
  )
  out.append(
    judged(
      "An eighth of the tokens gives videos as good as all of a grid's: 81 frames in 8 times fewer.",
      "VideoFlexTok, 672 tokens",
      "gFVD of grid less that of nested at an eighth of its tokens, largest generators",
      _each(("nested", "grid"), generators, eighth),
    )
  )
  out.append(
    judged(
      "Lengths that differ from clip to clip save tokens in one pass at equal LPIPS.",
      "EVATok, 24.4 %",
      "share of tokens saved",
      _each(("evatok",), tokenizers, lambda a: a.get("saved")),
    )
  )
  return out


def _each(arms: Sequence[str], found: Mapping[str, Mapping[int, Any]], number: Callable) -> list[float | None]:
  """`number` of the arms' results, seed by seed, where all of them have that seed."""
  seeds = set.intersection(*(set(found.get(arm, {})) for arm in arms))
  return [number(*(found[arm][seed] for arm in arms)) for seed in sorted(seeds)]


def quality(result: Mapping[str, Any], keep: int) -> float | None:
  """Higher is better: minus LPIPS, or PSNR where no net was there; None for another budget."""
  for row in result["rows"]:
    if row["keep"] == keep:
      return -row["lpips"] if row["lpips"] is not None else row["psnr"]
  return None


def best(result: Mapping[str, Any]) -> float:
  return quality(result, max(row["keep"] for row in result["rows"] if row["keep"] is not None))


def smallest_step(result: Mapping[str, Any]) -> float | None:
  keeps = sorted(row["keep"] for row in result["rows"] if row["keep"] is not None)
  return min((quality(result, b) - quality(result, a) for a, b in itertools.pairwise(keeps)), default=None)


def known(result: Mapping[str, Any], attribute: str, keep: int) -> float | None:
  """The probe's accuracy from `keep` tokens of every step."""
  return ((result["probe"] or {}).get("rows", {}).get(attribute, {})).get(f"k{keep}")


def _less(a: float | None, b: float | None) -> float | None:
  return None if a is None or b is None else a - b


def times_smaller(nested: Mapping[str, dict], grid: Mapping[str, dict]) -> float | None:
  """Parameters of the grid's largest over those that nested needs for its gFVD, between sizes by the logarithm.

  1 / (smallest over largest) at most: where even the smallest is better, that is a lower bound of the truth.
  """
  aim, size = _gfvd(_largest(grid)), _largest(grid)["parameters"]
  points = sorted((entry["parameters"], _gfvd(entry)) for entry in nested.values())
  if aim is None or any(value is None for _, value in points) or len(points) < 2:
    return None
  for (small, worse), (large, better) in itertools.pairwise([(points[0][0], math.inf), *points]):
    if better <= aim:
      share = 1.0 if not math.isfinite(worse) or worse == better else (worse - aim) / (worse - better)
      return size / math.exp(math.log(small) + share * (math.log(large) - math.log(small)))
  return size / points[-1][0] * 0.99  # not even the largest: fewer times than that


def eighth(nested: Mapping[str, dict], grid: Mapping[str, dict]) -> float | None:
  made = _largest(nested)
  keeps = sorted(int(name.rpartition(" ")[2]) for name in made if name.startswith("gfvd/generated keep "))
  few = [keep for keep in keeps if keep * 8 <= keeps[-1]]
  aim = _gfvd(_largest(grid))
  return None if not few or aim is None else aim - made[f"gfvd/generated keep {few[-1]}"]


def _largest(sizes: Mapping[str, dict]) -> dict:
  return max(sizes.values(), key=lambda entry: entry["parameters"])


def _gfvd(entry: Mapping[str, Any]) -> float | None:
  """Of videos from all tokens."""
  made = {name: value for name, value in entry.items() if name.startswith("gfvd/generated keep ")}
  return made[max(made, key=lambda name: int(name.rpartition(" ")[2]))] if made else None
