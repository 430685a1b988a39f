"""The study of families: what its verdicts say of numbers that are known, and one run of it at the smallest size."""

import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import vftok
from configs import study as experiments
from vftok.models.config import TokenizerConfig
from vftok.models.config_json import from_dict
from vftok.tasks import make_task
from vftok.tools.study.families import claims, shown
from vftok.tools.study.families.claims import HELD, NOT_HELD, OPEN, interval, judged
from vftok.tools.study.families.jobs import Study, judged_keeps
from vftok.tools.study.families.saved import _share
from vftok.tools.study.families.scored import Scored

ROOT = Path(__file__).parents[1]


def rows(qualities, lpips=True):
  row = lambda keep, q: dict(keep=keep, bits=10.0 * (keep or 0), lpips=-q if lpips else None, psnr=q)
  return [row(None, 0.0), *(row(2**i, q) for i, q in enumerate(qualities))]


def test_intervals_are_students():
  mean, low, high = interval([1.0, 2.0, 3.0])
  assert mean == 2 and high - mean == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4) and mean - low == high - mean
  assert interval([1.0]) == (1.0, None, None) and interval([]) == (None, None, None)


@pytest.mark.parametrize(
  ("values", "bound", "verdict"),
  [
    ((1.0, 1.1, 0.9), 0.0, HELD),
    ((-1.0, -1.1, -0.9), 0.0, NOT_HELD),
    ((1.0, -1.1, 0.9), 0.0, OPEN),
    ((1.0,), 0.0, OPEN),
    ((None, None), 0.0, OPEN),
    ((4.9, 4.8, 4.85), 5.0, NOT_HELD),
  ],
)
def test_verdicts_follow_intervals(values, bound, verdict):
  assert judged("c", "", "", values, bound).verdict == verdict


def test_a_curve_is_judged_by_its_smallest_step():
  assert claims.smallest_step({"rows": rows([-0.5, -0.3, -0.29])}) == pytest.approx(0.01)
  assert claims.smallest_step({"rows": rows([20.0, 19.0, 25.0], lpips=False)}) == pytest.approx(-1)
  assert claims.quality({"rows": rows([-0.5, -0.3])}, 2) == -0.3
  assert claims.quality({"rows": rows([-0.5, -0.3])}, 8) is None


def generator(parameters, gfvd, few=None):
  more = {} if few is None else {"gfvd/generated keep 2": few}
  return {"parameters": parameters, "gfvd/generated keep 16": gfvd, **more}


def test_sizes_are_compared_at_equal_gfvd():
  grid = {"2": generator(1e6, 300), "4": generator(1e7, 100)}
  half_way = {"2": generator(1e6, 150), "4": generator(1e7, 50)}
  assert claims.times_smaller(half_way, grid) == pytest.approx(10**0.5)
  assert claims.times_smaller({"2": generator(1e6, 90), "4": generator(1e7, 50)}, grid) == pytest.approx(10)
  assert claims.times_smaller({"2": generator(1e6, 900), "4": generator(1e7, 500)}, grid) < 1
  assert claims.eighth({"2": generator(1e6, 90, few=70)}, grid) == 30
  assert claims.eighth({"2": generator(1e6, 90)}, grid) is None


def test_saved_tokens_are_those_of_an_equal_uniform_count():
  uniform = {2: 0.4, 4: 0.3, 8: 0.2}
  assert _share(16.0, 0.3, uniform, 4) == pytest.approx(0)
  assert _share(8.0, 0.3, uniform, 4) == pytest.approx(0.5)
  assert _share(16.0, 0.25, uniform, 4) == pytest.approx(1 - 16 / (16 * 2**0.5))
  assert _share(16.0, 0.1, uniform, 4) is None and _share(16.0, 0.5, uniform, 4) is None
  assert _share(16.0, 0.3, {2: 0.3, 4: 0.4}, 4) is None


def test_verdicts_need_no_result():
  found = claims.verdicts({}, {})
  assert len(found) > 6 and {v.verdict for v in found} == {OPEN}


@pytest.mark.parametrize("attribute", ["object", "colour", "motion"])
def test_first_tokens_are_compared_by_what_a_probe_reads_of_them(attribute):
  probe = lambda k1: {"rows": rows([-0.5]), "probe": {"rows": {attribute: {"k1": k1, "k2": 0.9}}}}
  seeds = lambda *found: dict(enumerate(map(probe, found)))
  found = claims.verdicts({"nested": seeds(0.8, 0.82, 0.81), "grid_16": seeds(0.4, 0.42, 0.41)}, {})
  (of_it,) = [v for v in found if attribute in v.claim]
  np.testing.assert_allclose(of_it.values, 0.4)
  assert of_it.verdict == HELD


@pytest.mark.slow
def test_only_the_first_frames_are_scored():
  tok = vftok.Tokenizer(from_dict(TokenizerConfig, experiments.get_config("nested-smoke").model.to_dict()))
  params = jax.jit(tok.init)(jax.random.key(0))
  scored, video = Scored(tok, 16), np.random.default_rng(0).integers(0, 255, (2, 16, 16, 16, 3), np.uint8)
  tokens = scored.encode(params, video)
  assert tokens.frames == 16 and scored.steps_for(16) == tokens.ids.shape[1] == 5
  filled = np.concatenate([video, video[:, -1:]], axis=1)
  np.testing.assert_array_equal(tokens.ids, tok.encode(params, filled).ids)
  key = jax.random.key(0)
  whole = tok.decode(params, tok.encode(params, filled), key, steps=1)
  np.testing.assert_allclose(scored.decode(params, tokens, key, steps=1), whole[:, :16], atol=1e-5)
  latents = scored.encode_latents(params, video)
  assert scored.decode_pixels(params, latents).shape == video.shape


def test_results_of_another_size_are_not_mixed_in(tmp_path):
  path = tmp_path / "nested" / "0" / "d1.json"
  smoke, pocket = Study(experiments, tmp_path, "smoke"), Study(experiments, tmp_path, "pocket")
  assert smoke._once(path, lambda: {"depth": 1}) == {"depth": 1}
  assert smoke._once(path, lambda: pytest.fail("made twice")) == {"depth": 1}
  with pytest.raises(ValueError, match=r"made at another size than pocket is .*pixels.*: use another --out"):
    pocket._once(path, lambda: pytest.fail("made again"))


def test_the_page_is_of_all_that_is_there(tmp_path):
  """Of other seeds and arms than this call's, in the study's order; what is no result is not looked at."""
  study = Study(experiments, tmp_path, "smoke")
  made = [("larp", 10, 0), ("nested_flow", 2, 0), ("nested", 2, 0), ("nested", 10, 0), ("nested", 2, 1)]
  for which in made:
    study._once(study.result(*which), lambda which=which: {"is": list(which)})
  (tmp_path / "nested" / "notes").mkdir()
  (tmp_path / "grid" / "3").mkdir(parents=True)
  tokenizers, generators = study.found()
  assert list(tokenizers) == ["nested", "larp", "nested_flow"] and list(tokenizers["nested"]) == [2, 10]
  assert tokenizers["nested"][10] == {"is": ["nested", 10, 0]}
  assert generators == {"nested": {2: {"1": {"is": ["nested", 2, 1]}}}}


def test_flow_arms_stand_on_a_vae_that_is_trained_once(tmp_path, monkeypatch):
  ran = []

  def run(cfg, workdir):
    (workdir / "model").mkdir(parents=True)
    ran.append((cfg.task, str(workdir.relative_to(tmp_path)), cfg.get("vae", "")))

  monkeypatch.setattr("vftok.train.loop.run", run)
  study = Study(experiments, tmp_path, "pocket")
  for arm in ("nested", "grid", "nested", "larp"):
    study.tokenizer(arm, 3)
  vae = str(tmp_path / "vae" / "model")
  flows = [("tokenizer", f"{arm}/3/tokenizer", vae) for arm in ("nested", "grid")]
  assert ran == [("vae", "vae", ""), *flows, ("one_pass", "larp/3/tokenizer", "")]
  (tmp_path / "vae" / "model").rename(tmp_path / "elsewhere")  # trained on another machine
  study.tokenizer("nested", 3)
  assert len(ran) == 4
  study.tokenizer("nested_white", 0)
  assert ran[4:] == [
    ("vae", "vae_white", ""),
    ("tokenizer", "nested_white/0/tokenizer", str(tmp_path / "vae_white" / "model")),
  ]
  below = experiments.vae("pocket").model
  assert experiments.get_config("nested-pocket").model.vae == below and below.z_channels == 8


def test_generated_videos_are_judged_where_claims_are_made():
  assert judged_keeps([1, 2, 4, 8, 16]) == (2, 16) and judged_keeps([1, 2, 4]) == (4,) and judged_keeps([16]) == (16,)


@pytest.mark.parametrize("size", ["smoke", "pocket", "mini64"])
def test_arms_share_what_they_must(size):
  made = {arm: experiments.get_config(f"{arm}-{size}") for arm in experiments.ARMS}
  for name in ("steps", "batch_size", "ema", "seed"):
    assert len({str(cfg[name]) for cfg in made.values()}) == 1, name
  for name in ("lr", "warmup", "schedule", "final", "b1", "b2", "weight_decay", "clip", "muon"):
    assert len({cfg.optim[name] for cfg in made.values()}) == 1, name
  sources = {str({**source, "frames": 0}) for cfg in made.values() for source in cfg.data.sources.to_dict().values()}
  assert len(sources) == 1


def test_recipes_are_nested_but_for_one_thing():
  """Everything but the title, and what the table says; the one of whitened latents has a VAE of its own."""
  plain = lambda cfg: {k: v for k, v in cfg.to_dict().items() if k not in ("title", "loss")}
  nested = experiments.get_config("nested-pocket")
  for arm, own in experiments.RECIPES.items():
    cfg = experiments.get_config(f"{arm}-pocket")
    assert plain(cfg) == plain(nested) and cfg.loss.to_dict() == {**nested.loss.to_dict(), **own}, arm
    assert experiments.is_flow(arm)
  assert experiments.vae_name("nested_white") != experiments.vae_name("nested_flow") == experiments.vae_name("grid")
  whitened = [experiments.vae("pocket", arm).loss.fit_whiten for arm in ("nested", "nested_flow", "nested_white")]
  assert whitened == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("name", ["nested", "nested-pocket-x", "nested-pocket-2-3", "cosmos-pocket"])
def test_unknown_names_are_key_errors_of_their_own(name):
  with pytest.raises(KeyError, match=f"^'{name}'$"):  # what the command line tells in a sentence
    experiments.get_config(name)


@pytest.mark.slow
def test_arms_are_as_large():
  """Without what only training has: heads, critic, prior."""
  found = {}
  for arm in experiments.ARMS:
    task = make_task(experiments.get_config(f"{arm}-pocket"))
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    shapes = shapes.get("tokenizer", shapes)
    parts = {name: shapes[name] for name in ("encoder", "decoder", "quantizer") if name in shapes}
    parts |= {} if task.tok.one_pass else {"vae": task.frozen()["vae"]}
    found[arm] = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(parts))
  mean = (min(found.values()) + max(found.values())) / 2
  assert all(abs(count / mean - 1) < 0.05 for count in found.values()), found


def test_costs_of_coding():
  """A flow decoder's grows by each evaluation; a one-pass training step is three times both halves, and its prior."""
  one, two, three = (make_task(experiments.get_config("nested-pocket")).coding_flops(n) for n in (1, 2, 3))
  assert one[0] == two[0] == three[0] > 0 and three[1] - two[1] == pytest.approx(two[1] - one[1])
  assert 0 < two[1] - one[1] < one[1]
  task = make_task(experiments.get_config("evatok-smoke"))
  assert task.coding_flops(1) == task.coding_flops(9) and 3 * sum(task.coding_flops(1)) <= task.flops()
  cfg = experiments.get_config("larp-smoke")
  cfg.loss.prior = 0.0
  learner, prior = make_task(cfg).learner, make_task(experiments.get_config("larp-smoke")).learner
  assert sum(learner.coding_flops()) == learner.flops() < prior.flops()


def test_bad_options_are_one_sentence(tmp_path, capsys):
  from vftok.tools.study.families.__main__ import main

  for words in (["--size", "huge"], ["--arms", "cosmos"], ["--seeds", "a"], ["--seeds=-1"], ["--minutes", "nan"]):
    assert main(["--out", str(tmp_path / "x"), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("study.families: error: ") and len(said.splitlines()) == 1 and len(said) < 430


@pytest.mark.slow
def test_the_study_runs_stops_and_goes_on(tmp_path):
  command = [sys.executable, "-m", "vftok.tools.study.families", "--size", "smoke", "--seeds", "0,1"]
  command += ["--arms", "nested,larp", "--out"]
  run = lambda *words: subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=True)
  out = tmp_path / "study"
  stopped = run(str(out), "--minutes", "0.1")
  assert "goes on from here" in stopped.stdout
  data = json.loads((out / "study.json").read_text()) if (out / "study.json").is_file() else {"tokenizers": {}}
  assert sum(map(len, data["tokenizers"].values())) < 4
  run(str(out))
  data = json.loads((out / "study.json").read_text())
  assert {arm: sorted(of) for arm, of in data["tokenizers"].items()} == {"nested": ["0", "1"], "larp": ["0", "1"]}
  assert all(set(sizes) == {"1", "2"} for of in data["generators"].values() for sizes in of.values())
  assert len(data["claims"]) > 6 and "<table>" in (out / "study.html").read_text()
  nested, larp = (data["tokenizers"][arm]["0"] for arm in ("nested", "larp"))
  assert set(nested["high_noise"]) == {"high/null", "high/k1", "high/all", "high/wrong"} and not larp["high_noise"]
  assert nested["decode_gflop"] > nested["encode_gflop"] > 0 and (out / "shown.png").is_file()
  before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.json")}
  run(str(out))
  assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.json")}
  other = tmp_path / "other"  # as if another machine had made the results
  for path in before:
    (other / path.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
    (other / path.relative_to(out)).write_bytes(path.read_bytes())
  run(str(other))
  known = lambda place: {k: v for k, v in json.loads((place / "study.json").read_text()).items() if k != "protocol"}
  assert known(other) == known(out) and not list(other.glob("*/*/tokenizer"))


def test_scenes_of_all_arms_stand_beside_each_other(tmp_path):
  clip = lambda level: np.full((16, 32, 32, 3), level, np.uint8)
  media = lambda names: [{name: clip(16 * i + 100 * n) for i, name in enumerate(names)} for n in range(2)]
  names = ["original", "VAE alone", "keep 1", "keep 2", "keep 4", "keep 8", "keep 16"]
  arms = {arm: tmp_path / arm / "shown.png" for arm in ("nested", "grid_16", "larp")}
  saved = {"nested": shown.save(arms["nested"], media(names)), "larp": shown.save(arms["larp"], media(names[:3]))}
  assert saved == {"nested": names, "larp": names[:3]}
  stored = np.asarray(Image.open(arms["nested"]))
  assert stored.shape == (64, 7 * 32, 3) and stored[40, 2 * 32 + 5, 0] == 132
  files = {arm: (path, saved.get(arm, names)) for arm, path in arms.items()}
  assert shown.sheet(tmp_path / "all.png", files) and not shown.sheet(tmp_path / "none.png", {"larp": (tmp_path, [])})
  sheet = np.asarray(Image.open(tmp_path / "all.png"))[..., 0]
  levels = lambda i: {16 * i, 16 * i + 100}
  found = {int(level) for level in np.unique(sheet) if (sheet == level).sum() > 100**2}
  assert found >= levels(0) | levels(1) | levels(2) | levels(4) | levels(6) and not found & (levels(3) | levels(5))
