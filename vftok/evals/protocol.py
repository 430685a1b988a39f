"""What a number is of: a JSON file beside every report with a Frechet distance, from which it can be made again.

Published distances do not compare, for their clips, counts, strides and nets are told nowhere. The file names all that
decides a number: the set and which clips of it in which order, with a hash of their pixels; the clips' frames, size,
rate and stride; seeds, guidance, steps and budgets, by their keys in the config; the model's fingerprint; the metric
nets' hashes; versions; and the results. `--protocol FILE` evaluates by it, or says where it does not fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from vftok.evals.clips import Clips
from vftok.evals.scores import METRICS
from vftok.frozen.metrics import weights
from vftok.io import hub
from vftok.runtime.files import whole_file
from vftok.runtime.words import brief, cut, is_number, is_whole
from vftok.tokenizer.identity import sampled

MAX_BATCH = 1 << 30  # bytes of the pictures of a batch
FORMAT, VERSION = "vftok-protocol", 1
NAME = "protocol.json"
PLACES = ("directory", "path", "manifest")  # options of sources that say where, and not what: pixels have a hash
_EVAL = ("batch_size", "keeps", "seeds", "steps", "guidance", "guidance_kind", "lpips_net", "rfvd")
_MADE = ("split", "keeps", "seed", "anew", "steps", "decoder", "decoder_scale", "guidance", "fvd")
_DATA = ("frames", "size", "fps")
KEYS = {  # of the config, by kind: what decides the numbers beside model and clips
  "reconstruction": ("seed", *(f"data.{key}" for key in _DATA), *(f"eval.{key}" for key in _EVAL)),
  "generation": (
    "seed",
    "loss.show_guidance",
    *(f"tokenize.{key}" for key in _DATA),
    *(f"eval.generation.{key}" for key in _MADE),
  ),
}
REPORTS = {"reconstruction": "metrics.json", "generation": "generation.json"}
NUMBERS = (*METRICS, "gfvd", "gfvd_vae", "clip", "distance")


@dataclasses.dataclass(frozen=True)
class Protocol:
  """The content of such a file.

  Attributes:
    kind: "reconstruction" or "generation". split: the set's name. sources: the set, as the config has it.
    clips: {"indices": {source: [...]}, "count", "sha256" of their pixels, "frames", "size", "fps", "stride"}.
    model: 16 hex digits of all weights that were evaluated. settings: {key of the config: value}.
    nets: {metric net: {"from", "sha256"}}. results: {row: {metric: value}}. versions: of what computed them.
  """

  kind: str
  split: str
  sources: dict[str, Any]
  clips: dict[str, Any]
  model: str
  settings: dict[str, Any]
  nets: dict[str, Any]
  results: dict[str, Any]
  versions: dict[str, str]

  @classmethod
  def of(cls, kind: str, split: str, cfg: ConfigDict, sources, clips: Clips, model: str, report) -> Protocol:
    """Of an evaluation that wrote its numbers into the directory `report`."""
    rows = json.loads((Path(report) / REPORTS[kind]).read_text())
    rows = rows["rows"] if kind == "generation" else rows["splits"][0]["rows"]
    settings = {key: plain(_get(cfg, key)) for key in KEYS[kind] if _get(cfg, key) is not None}
    fps = settings.get("data.fps") or settings.get("tokenize.fps") or None
    facts = {"count": rows[0]["clips"], "frames": rows[0]["frames"], "size": rows[0]["size"]}
    facts |= {"fps": fps, "stride": None if fps else 1}  # taken by time at a rate, else one frame after the other
    return cls(
      kind,
      split,
      plain(sources),
      {**facts, "sha256": clips.sha256, "indices": clips.indices},
      model,
      settings,
      {name: net for name in ("i3d_net", "lpips_net") if (net := _net(rows[0].get(name)))},
      {row["name"]: {m: row[m] for m in NUMBERS if row.get(m) is not None} for row in rows},
      _versions(),
    )

  @classmethod
  def read(cls, path) -> Protocol:
    """Of a file.

    Raises:
      ValueError, FileNotFoundError: no such file, or no protocol, in one sentence.
    """
    if not Path(path).is_file():
      raise FileNotFoundError(f"{cut(path, 150)} is no file, expected a {NAME} of an evaluation: correct --protocol.")
    found = hub.read_json(Path(path))
    version = found.get("version")
    if found.get("format") != FORMAT or not is_whole(version) or version != VERSION:
      said = f"format {brief(found.get('format'))} and version {brief(version)}"
      raise ValueError(f"{cut(path, 150)} has {said}, expected {FORMAT!r} and {VERSION}: is it a {NAME}?")
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for name, kind in fields.items():
      if not isinstance(found.get(name), str if kind == "str" else dict):
        raise ValueError(f"{cut(path, 150)} has {name} = {brief(found.get(name))}: make the protocol again.")
    indices = found["clips"].get("indices")
    whole = isinstance(indices, dict) and all(
      isinstance(of, list) and all(type(i) is int and i >= 0 for i in of) for of in indices.values()
    )
    numbers = all(
      isinstance(row, dict) and all(type(value) in (int, float) and is_number(value) for value in row.values())
      for row in found["results"].values()
    )
    if not numbers:
      raise ValueError(f"{cut(path, 150)} has results that are no finite numbers by row: make the protocol again.")
    if found["kind"] not in KEYS or not whole or not any(indices.values()):
      raise ValueError(f"{cut(path, 150)} names no clips, or no kind of evaluation: make the protocol again.")
    return cls(**{name: found[name] for name in fields})

  def write(self, directory) -> None:
    """Writes NAME into a directory, whole or not at all."""
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
    with whole_file(Path(directory) / NAME) as path:
      path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

  # ---- evaluating by it

  def applied(self, cfg: ConfigDict) -> ConfigDict:
    """The config with the settings of the protocol.

    Raises:
      ValueError: a setting, set, source or net that is not the config's.
    """
    cfg = ConfigDict(cfg.to_dict())
    for key, value in self.settings.items():
      old = _get(cfg, key)
      if key not in KEYS[self.kind] or old is None or not _like(old, value):
        raise ValueError(f"the protocol has {brief(key)} = {brief(value)}, which this config has not: use its config.")
      *parents, last = key.split(".")
      inner = cfg
      for parent in parents:
        inner = inner[parent]
      inner[last] = tuple(value) if isinstance(value, list) else type(old)(value)
    self._check_batch(cfg)
    self._check_sources(cfg)
    for name, net in self.nets.items():
      if not isinstance(net, Mapping) or net not in [_net(source.short) for source in weights.SOURCES.values()]:
        raise ValueError(f"the protocol's {name} is {brief(net)}, expected a net of vftok: its numbers are of another.")
    return cfg

  def _check_batch(self, cfg: ConfigDict) -> None:
    """A file may not ask for more memory than an evaluation of ours does."""
    part = "data" if self.kind == "reconstruction" else "tokenize"
    of = lambda name, rest: max(1, int(_get(cfg, f"{part}.{name}") or rest))
    size = 3 * of("frames", 1) * of("size", 1) ** 2 * (cfg.eval.batch_size if part == "data" else 1)
    if size > MAX_BATCH:
      raise ValueError(
        f"a batch by the protocol has {size:.2g} bytes, expected at most {MAX_BATCH:.2g}: use its config."
      )

  def _check_sources(self, cfg: ConfigDict) -> None:
    sets = cfg.eval.sets if self.kind == "reconstruction" else cfg.get("tokenize", {}).get("splits", {})
    if self.split not in sets:
      raise ValueError(f"the protocol is of the set {brief(self.split)}, expected one of {', '.join(sets) or 'none'}.")
    ours, theirs = (_what(sources) for sources in (plain(sets[self.split].to_dict()), self.sources))
    if _text(ours) != _text(theirs) or list(ours) != list(theirs):
      differ = next((n for n in (*theirs, *ours) if _text(ours.get(n)) != _text(theirs.get(n))), "their order")
      here, there = brief(ours.get(differ), 80), brief(theirs.get(differ), 80)
      raise ValueError(f"the set {self.split} has source {brief(differ)} = {here}, the protocol {there}: use its data.")

  def check_model(self, model: str) -> None:
    """Raises ValueError where another model is evaluated."""
    if model != self.model:
      raise ValueError(
        f"the protocol's fingerprint is {cut(self.model, 40)}, this model's {model}: evaluate the model it was made of."
      )

  def check_clips(self, other: Protocol) -> None:
    """Raises ValueError where clips of the right numbers had other pixels."""
    if (found := other.clips["sha256"]) != self.clips.get("sha256"):
      raise ValueError(
        f"the pixels of the {self.count} clips have sha256 {found[:16]}..., the protocol's "
        f"{cut(self.clips.get('sha256'), 19)}: the data has changed, or is read otherwise."
      )

  @property
  def count(self) -> int:
    return sum(map(len, self.clips["indices"].values()))

  def compared(self, other: Protocol) -> str:
    """How far the numbers of `other`, made by this protocol, are from its own, in words."""
    pairs = {
      f"{m}/{name}": (value, other.results.get(name, {}).get(m, math.nan))
      for name, row in self.results.items()
      for m, value in row.items()
    }
    apart = {name: abs(a - b) / max(abs(a), 1e-12) for name, (a, b) in pairs.items()}
    if not any(value != 0 for value in apart.values()):
      return f"all {len(pairs)} numbers are the protocol's"
    worst = max(apart, key=lambda name: math.inf if math.isnan(apart[name]) else apart[name])
    a, b = pairs[worst]
    return f"{sum(v == 0 for v in apart.values())} of {len(pairs)} numbers are equal; {worst} is {b:.6g}, was {a:.6g}"


def leave(kind: str, split: str, cfg, sources, clips: Clips, model: str, report, asked: Protocol | None = None) -> None:
  """Puts the protocol beside a report, if there is one; where it was evaluated by another, says how the numbers differ.

  Raises:
    ValueError: by `asked` the clips should have had other pixels.
  """
  if not (Path(report) / REPORTS[kind]).is_file():
    return
  made = Protocol.of(kind, split, cfg, sources, clips, model, report)
  made.write(report)
  if asked:
    asked.check_clips(made)
    print(f"protocol of {split}: {asked.compared(made)}", flush=True)


def fingerprint(*trees: Any) -> str:
  """16 hex digits of everything in some trees of weights."""
  digest = hashlib.sha256()
  for tree in trees:
    sampled(digest, nn.unbox(tree))
  return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
  """As JSON has it: lists for tuples, dicts for configs."""
  return json.loads(json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value))


def _get(cfg: ConfigDict, key: str) -> Any:
  for name in key.split("."):
    if not isinstance(cfg, ConfigDict) or name not in cfg:
      return None
    cfg = cfg[name]
  return cfg


def _like(old: Any, value: Any) -> bool:
  """Whether a value can take the place of a config's own."""
  if isinstance(old, tuple | list):
    return isinstance(value, list) and all(type(x) in (int, float) and _is_small(x) for x in value)
  if isinstance(old, bool) or isinstance(value, bool):
    return isinstance(old, bool) and isinstance(value, bool)
  numbers = isinstance(old, int | float) and isinstance(value, int | float) and _is_small(value)
  return isinstance(value, str) if isinstance(old, str) else numbers and (value == int(value) or type(old) is float)


def _text(value: Any) -> str:
  """What equal values have in common and no others: 8 is 8.0, and true is not 1."""
  return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)


def _is_small(value: float) -> bool:
  return is_number(value) and abs(value) < 1 << 31


def _what(sources: Any) -> dict[str, Any]:
  if not isinstance(sources, Mapping):
    return {}
  drop = lambda entry: {k: v for k, v in entry.items() if k not in PLACES} if isinstance(entry, Mapping) else entry
  return {name: drop(entry) for name, entry in sources.items()}


def _net(short: str | None) -> dict[str, str] | None:
  """{"from": package, "sha256"} of a net as it stands beside numbers."""
  source = next((source for source in weights.SOURCES.values() if source.short == short), None)
  return source and {"from": source.requirement, "sha256": source.sha256}


def _versions() -> dict[str, str]:
  found = {}
  for name in ("vftok", "jax", "jaxlib", "flax", "numpy"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from its sources
      found[name] = importlib.metadata.version(name)
  return {**found, "python": platform.python_version(), "backend": jax.default_backend()}
