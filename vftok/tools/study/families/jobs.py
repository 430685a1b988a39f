"""What the study does for one arm and seed, piece by piece; each leaves a file that says it is done.

OUT/vae                           of the VAE's training, where flow arms of the size have one of their own
OUT/ARM/SEED/tokenizer            workdir of the training, with `model`
OUT/ARM/SEED/reconstruction.json  guidance chosen on "val", numbers of "test", probe, costs; reconstruction/: its report
OUT/ARM/SEED/shown.png            frames of a few scenes of "test" at every budget
OUT/ARM/SEED/curves, router       of an arm whose ids depend on counts: what clips lose, and what learns to choose
OUT/ARM/SEED/tokens               the training clips as its tokens
OUT/ARM/SEED/dDEPTH               workdir of a generator, with `model`
OUT/ARM/SEED/dDEPTH.json          nats a clip, gFVD, agreement with the class
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import vftok
from vftok.data.configured import eval_loader
from vftok.data.loader import first_clips
from vftok.evals import probe_run, reconstruction, report
from vftok.runtime.files import whole_file
from vftok.runtime.words import cut
from vftok.tasks import make_task
from vftok.tools.label_budgets import label
from vftok.tools.study.families import shown
from vftok.tools.study.families.saved import saved
from vftok.tools.study.families.scored import Scored, cost, high_noise
from vftok.tools.tokenize_dataset import tokenize
from vftok.train import evaluate, loop


class OutOfTime(Exception):
  """The minutes of this call are over; the next one goes on."""


@dataclasses.dataclass
class Study:
  """Attributes:
  experiments: the module configs/study.py. out: where everything goes. size: a key of its `SIZES`.
  ends: on the clock of time.monotonic; None: when all is done.
  """

  experiments: Any
  out: Path
  size: str
  ends: float | None = None

  @property
  def facts(self) -> Any:
    return self.experiments.SIZES[self.size]

  def config(self, arm: str, depth: int = 0) -> ConfigDict:
    return self.experiments.get_config(f"{arm}-{self.size}" + (f"-{depth}" if depth else ""))

  def place(self, arm: str, seed: int) -> Path:
    return self.out / arm / str(seed)

  def scenes(self, split: str) -> dict:
    """Sources of a split, with the frames that are scored."""
    sources = self.experiments.scenes(self.experiments.ARMS[0], self.facts, split)
    return {name: {**source, "frames": self.experiments.FRAMES} for name, source in sources.items()}

  # ---- training

  def tokenizer(self, arm: str, seed: int) -> Path:
    """The arm's trained model."""
    workdir = self.place(arm, seed) / "tokenizer"
    cfg = self.config(arm)
    cfg.seed = seed
    vae = self.experiments.vae(self.size, arm) if self.experiments.is_flow(arm) else None
    if vae and not (workdir / "model").is_dir():  # a model has its VAE inside
      cfg.vae = str(self._trained(vae, self.out / self.experiments.vae_name(arm)).resolve())
    return self._trained(cfg, workdir)

  def _trained(self, cfg: ConfigDict, workdir: Path) -> Path:
    model = workdir / "model"
    if not model.is_dir():
      if self.ends is not None:
        cfg.minutes = max((self.ends - time.monotonic()) / 60, 0.05)
      loop.run(cfg, workdir)
      jax.clear_caches()
    if not model.is_dir():
      raise OutOfTime
    return model

  # ---- tokenizers judged

  def reconstruction(self, arm: str, seed: int) -> dict[str, Any]:
    """Rows of "test" at each budget under the guidance that is best on "val", the probe, parameters and seconds."""
    return self._once(self.result(arm, seed), lambda: self._reconstruction(arm, seed))

  def _reconstruction(self, arm: str, seed: int) -> dict[str, Any]:
    model, size = self.tokenizer(arm, seed), self.facts
    self._time()
    tok, params = vftok.load(model)
    scored = Scored(tok, self.experiments.FRAMES)
    cfg = self.config(arm)
    cfg.data.frames = self.experiments.FRAMES
    sets = {split: self.scenes(split) for split in ("val", "test")}
    tried = self._guidances(cfg, scored, params, sets["val"])
    best = min(tried, key=tried.get) if tried else None
    how = _sampling(tok, size, best)
    made = self._scores(cfg, scored, params, sets["test"], "test", size.judged_on, how, scored.budgets)
    cfg.eval.sets = ConfigDict({"test": sets["test"]})
    cfg.eval.probe_clips, cfg.eval.probe_train = size.probed_on, "train"
    cfg.data.sources = self.scenes("train")
    table = probe_run.probe_set(cfg, scored, params, "test")
    made = dataclasses.replace(made, probe=table)
    report.write_report(self.place(arm, seed) / "reconstruction", [made], title=f"{arm} {self.size}", fps=8.0)
    names = shown.save(self.place(arm, seed) / shown.SHOWN, made.media)
    with self._clips(cfg, sets["test"], 1) as batches:
      video = next(iter(batches))["video"][:1]
    high = {}
    if not tok.one_pass:
      with self._clips(cfg, sets["test"], size.judged_on) as batches:
        high = high_noise(scored, params, batches)
    task = make_task(self.config(arm))
    evaluations = size.solver_steps * (1 if best in (None, 1) else 2)
    encode, decode = task.coding_flops(evaluations)
    chosen = {} if tok.nested or len(tok.budgets) < 2 else self._saved(arm, seed, model)
    return {
      **chosen,
      "rows": made.rows,
      "shown": names,
      "codebook": made.codebook,
      "probe": table and table.to_json(),
      "guidance": best,
      "guidances": {str(scale): value for scale, value in tried.items()},
      "parameters": int(sum(np.size(x) for x in jax.tree.leaves(params))),
      "training_gflop_a_clip": task.flops() / 1e9,
      "encode_gflop": encode / 1e9,
      "decode_gflop": decode / 1e9,
      "high_noise": high,
      "nested": tok.nested,
      "one_pass": tok.one_pass,
      "tokens_a_clip": tok.chunk_steps * tok.registers,
      "machine": _machine(),
      "bits_a_clip": float(tok.chunk_steps * tok.registers * np.log2(tok.codebook_size)),
      **cost(scored, params, np.asarray(video), how),
    }

  def _saved(self, arm: str, seed: int, model: Path) -> dict[str, Any]:
    """What the arm's own router saves, see `saved.saved`; {} without a net, for labels are LPIPS."""
    if not self.facts.net:
      return {}
    place = self.place(arm, seed)
    cfg = self.experiments.router(arm, self.size, str(model.resolve()), str(place / "curves"))
    cfg.seed = seed
    print(label(cfg, place / "curves"))
    self._time()
    return saved(self._trained(cfg, place / "router"), place / "curves")

  def _guidances(self, cfg, tok, params, sources) -> dict[float, float]:
    """{scale: LPIPS on "val" at all tokens, or minus PSNR without a net}; {} where there is nothing to guide."""
    if tok.one_pass:
      return {}
    found = {}
    for scale in self.facts.guidances:
      how = _sampling(tok, self.facts, scale)
      made = self._scores(cfg, tok, params, sources, "val", self.facts.chosen_on, how, [tok.registers])
      row = next(row for row in made.rows if row["keep"] is not None)
      found[scale] = row["lpips"] if row["lpips"] is not None else -row["psnr"]
    return found

  def _scores(self, cfg, tok, params, sources, split: str, clips: int, how: Mapping[str, Any], keeps):
    net = "vgg" if self.facts.net else None
    options = {} if tok.one_pass else dict(steps=how["steps"], guidance=how["guidance"])
    with self._clips(cfg, sources, clips) as batches:
      return reconstruction.evaluate(
        tok,
        params,
        batches,
        split=split,
        keeps=keeps,
        lpips_net=net,
        rfvd=self.facts.net and split == "test",
        total=clips,
        **options,
      )

  @contextlib.contextmanager
  def _clips(self, cfg, sources, clips: int):
    with contextlib.closing(eval_loader(cfg, sources)) as loader:
      yield first_clips(loader, min(clips, loader.examples))

  # ---- generators

  def generator(self, arm: str, seed: int, depth: int) -> dict[str, Any]:
    """Nats a clip on "test", gFVD and agreement with the class of generated clips."""
    path = self.result(arm, seed, depth)
    return self._once(path, lambda: self._generator(arm, seed, depth, path.with_suffix("")))

  def _generator(self, arm: str, seed: int, depth: int, workdir: Path) -> dict[str, Any]:
    cfg, tokens = self.config(arm, depth), self.place(arm, seed) / "tokens"
    model = self.tokenizer(arm, seed)
    cfg.seed, cfg.tokenize.tokenizer = seed, str(model.resolve())
    self._time()
    print(tokenize(cfg, tokens))
    for sources in (cfg.data.sources, *cfg.eval.sets.values()):
      sources.tokens.directory = str(tokens)
    own = self._trained(cfg, workdir)
    self._time()
    tok, _ = vftok.load(model)
    guidance = self.reconstruction(arm, seed)["guidance"]
    cfg.init_from = str(own)
    cfg.eval.only = ("test",)
    cfg.eval.generation.keeps = judged_keeps(tok.budgets)
    cfg.eval.generation.update(dict(decoder="cfg" if guidance else "", decoder_scale=guidance or 1.0))
    cfg.eval.generation.update(dict(steps=self.facts.solver_steps))
    values = evaluate.run(cfg, workdir)
    jax.clear_caches()
    bits = values["test/bits_per_token"]
    return {
      "depth": depth,
      "parameters": sum(int(np.size(x)) for x in jax.tree.leaves(vftok.Generator.load(own)[1])),
      "nats_a_clip": bits * np.log(2) * tok.chunk_steps * tok.registers,
      **{k.removeprefix("generation/"): v for k, v in values.items() if k.startswith("generation/")},
      **{k.removeprefix("test/"): v for k, v in values.items() if "nll_per_clip" in k},
    }

  # ---- files

  def result(self, arm: str, seed: int, depth: int = 0) -> Path:
    """Where the numbers of a tokenizer go, or those of a generator of a depth."""
    return self.place(arm, seed) / (f"d{depth}.json" if depth else "reconstruction.json")

  def found(self) -> tuple[dict[str, dict], dict[str, dict]]:
    """All results that are there, whoever made them, as `claims.verdicts` takes them."""
    tokenizers: dict[str, dict] = {}
    generators: dict[str, dict] = {}
    for arm in (*self.experiments.ARMS, *self.experiments.RECIPES):
      for seed in sorted(int(place.name) for place in (self.out / arm).glob("*") if place.name.isdecimal()):
        known = lambda depth, arm=arm, seed=seed: self.result(arm, seed, depth).is_file()
        if known(0):
          tokenizers.setdefault(arm, {})[seed] = self.reconstruction(arm, seed)
        for depth in filter(known, self.facts.depths):
          generators.setdefault(arm, {}).setdefault(seed, {})[str(depth)] = self.generator(arm, seed, depth)
    return tokenizers, generators

  def _time(self) -> None:
    if self.ends is not None and time.monotonic() > self.ends:
      raise OutOfTime

  def _once(self, path: Path, make) -> dict[str, Any]:
    """What `path` holds, made first where it does not exist. Raises ValueError where it was made at another size."""
    size = json.loads(json.dumps(dataclasses.asdict(self.facts)))
    if not path.is_file():
      made = {"size": size, **make()}
      path.parent.mkdir(parents=True, exist_ok=True)
      with whole_file(path) as partial:
        partial.write_text(json.dumps(made, indent=2, allow_nan=False) + "\n")
    found = json.loads(path.read_text())
    was = found.pop("size", None)
    if was != size:
      differ = [name for name in size if not was or was.get(name) != size[name]]
      raise ValueError(
        f"{cut(path, 200)} was made at another size than {self.size} is (it differs in {cut(', '.join(differ), 60)}): "
        "use another --out."
      )
    return found


def _machine() -> str:
  """What seconds were measured on, with the cores that this process may use."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return f"{jax.devices()[0].device_kind}, {cores} CPU core{'s' * (cores != 1)}, jax {jax.__version__}"


def judged_keeps(budgets: list[int]) -> tuple[int, ...]:
  """Tokens a step that generated videos are judged at: all of them, and an eighth where that can be asked for."""
  return tuple([keep for keep in budgets if 8 * keep <= budgets[-1]][-1:] + budgets[-1:])


def _sampling(tok, size, scale: float | None) -> dict[str, Any]:
  """Options of `decode`."""
  if tok.one_pass:
    return {}
  options = tok.sampling(size.solver_steps, "cfg" if scale and scale != 1 else "none", scale or 1.0)
  return {"guidance": None, **options}
