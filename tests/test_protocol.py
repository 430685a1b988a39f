"""Protocols: what a distance is of, written beside it, and the same number made again from the file."""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from pixel_task import PixelTask
from test_reconstruction import cheap_logits

from configs import vae as vae_configs
from vftok.evals import protocol, reconstruction, report, scores
from vftok.evals.clips import Clips
from vftok.evals.protocol import Protocol
from vftok.frozen.metrics import weights
from vftok.tasks import TASKS
from vftok.train import evaluate


class Task(PixelTask):
  """The smallest task, which makes every clip one colour."""

  def evaluate(self, params, frozen, batches, total, split, out):
    cfg = self.cfg.eval
    paint = lambda video: jnp.broadcast_to(video.mean(0) / 127.5 - 1 + params["mean"], video.shape)
    options = dict(split=split, lpips_net=cfg.lpips_net or None, rfvd=cfg.rfvd, media=cfg.media, total=total)
    evaluation = reconstruction.evaluate_vae(paint, batches, **options)
    report.write_report(out, [evaluation], title="t", fps=8.0)
    return evaluation.scalars()


@pytest.fixture(scope="module", autouse=True)
def small():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scores, "video_logits", cheap_logits)
    patch.setattr(reconstruction.weights, "load_i3d", lambda: {})
    patch.setitem(TASKS, "vae", "test_protocol:Task")
    yield


def config(**changes):
  cfg = vae_configs.get_config("smoke")
  cfg.eval.update(dict(lpips_net="", rfvd=True, batch_size=2, clips=5, media=0))
  cfg.eval.sets = dict(shapes=dict(shapes=dict(kind="shapes", count=7)), more=dict(shapes=dict(kind="shapes", count=3)))
  cfg.init_from = "a model"
  cfg.update_from_flattened_dict(changes)
  return cfg


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(numbers, report) of an evaluation."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  return evaluate.run(config(), workdir), workdir / "eval" / "shapes"


@pytest.fixture
def made(run, tmp_path):
  """(numbers, file) of an evaluation; the file may be changed."""
  shutil.copytree(run[1], tmp_path / "made")
  return run[0], tmp_path / "made" / "protocol.json"


def test_what_is_written_beside_the_numbers(made):
  values, path = made
  found = json.loads(path.read_text())
  rows = json.loads((path.parent / "metrics.json").read_text())["splits"][0]["rows"]
  assert (found["format"], found["kind"], found["split"]) == ("vftok-protocol", "reconstruction", "shapes")
  assert found["sources"] == {"shapes": {"kind": "shapes", "count": 7}}
  clips = found["clips"]
  assert clips["indices"] == {"shapes": [0, 1, 2, 3, 4]} and clips["count"] == 5 and len(clips["sha256"]) == 64
  assert clips["frames"] == rows[0]["frames"] == 9 and clips["size"] == rows[0]["size"]
  assert clips["fps"] == config().data.fps and clips["stride"] is None
  settings = found["settings"]
  assert settings["eval.seeds"] == [0] and settings["eval.batch_size"] == 2 and settings["eval.rfvd"] is True
  assert {"eval.steps", "eval.guidance", "eval.guidance_kind", "eval.keeps", "data.frames"} <= settings.keys()
  i3d = weights.SOURCES["i3d"]
  assert found["nets"] == {"i3d_net": {"from": i3d.requirement, "sha256": i3d.sha256}}
  assert {"jax", "numpy", "python", "backend"} <= found["versions"].keys() and len(found["model"]) == 16
  for row in rows:
    assert found["results"][row["name"]]["rfvd"] == row["rfvd"] is not None
    assert values[f"shapes/rfvd/{row['name']}"] == row["rfvd"]


def test_the_same_numbers_are_made_again(made, tmp_path, capsys):
  values, path = made
  # Other settings, more clips and more sets in the config: the file decides.
  other = config(**{"eval.batch_size": 4, "eval.clips": 0, "data.frames": 13})
  again = evaluate.run(other, tmp_path / "other", path)
  assert again == {name: value for name, value in values.items() if name.startswith("shapes/")} and again
  assert "protocol of shapes: all 9 numbers are the protocol's" in capsys.readouterr().out
  assert json.loads((tmp_path / "other/eval/shapes/protocol.json").read_text()) == json.loads(path.read_text())
  assert other.data.frames == 13 and not (tmp_path / "other" / "eval" / "more").exists()


def test_a_number_that_is_another_is_said(made, tmp_path, capsys):
  _, path = made
  changed(path, lambda p: p["results"]["VAE alone"].update(rfvd=1.5))
  evaluate.run(config(), tmp_path / "other", path)
  assert "8 of 9 numbers are equal; rfvd/VAE alone is" in capsys.readouterr().out


def changed(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


REFUSED = [  # what is changed in the file, or in the config, and the sentence
  (lambda p: p.update(model="0" * 16), {}, "the protocol's fingerprint is 0000000000000000, this model's"),
  (lambda p: p["sources"]["shapes"].update(count=8), {}, "has source 'shapes' = {'count': 7, 'kind': 'shapes'}"),
  (lambda p: p["sources"].update(sim={"kind": "sim"}), {}, "has source 'sim' = None, the protocol {'kind': 'sim'}"),
  (None, {"eval.sets.shapes.shapes.count": 6}, "has source 'shapes' = {'count': 6, 'kind': 'shapes'}"),
  (lambda p: p["clips"]["indices"]["shapes"].append(9), {}, "clip 9 of source 'shapes' is missing"),
  (lambda p: p["clips"]["indices"].update(sim=[0]), {}, "clip 0 of source 'sim' is missing"),
  (lambda p: p["clips"]["indices"].update(shapes=[1, 0]), {}, "clip 1 of source 'shapes' is missing"),
  (lambda p: p["clips"]["indices"].update(shapes=[0, 2, 1.5]), {}, "names no clips"),
  (lambda p: p["clips"].update(indices={}), {}, "names no clips"),
  (lambda p: p["clips"].update(sha256="0" * 64), {}, "the data has changed, or is read otherwise"),
  (lambda p: p.update(split="val"), {}, "is of the set 'val', expected one of more, shapes"),
  (lambda p: p["nets"]["i3d_net"].update(sha256="0"), {}, "expected a net of vftok"),
  (lambda p: p["settings"].update({"eval.media": 3}), {}, "the protocol has 'eval.media' = 3"),
  (lambda p: p["settings"].update({"eval.steps": "3"}), {}, "the protocol has 'eval.steps' = '3'"),
  (lambda p: p["settings"].update({"eval.seeds": 0}), {}, "the protocol has 'eval.seeds' = 0"),
  (lambda p: p["settings"].update({"eval.rfvd": 1}), {}, "the protocol has 'eval.rfvd' = 1"),
  (lambda p: p.update(kind="probe"), {}, "no kind of evaluation"),
  (lambda p: p.update(version=2), {}, "expected 'vftok-protocol' and 1"),
  (lambda p: p.update(version=True), {}, "version True, expected 'vftok-protocol' and 1"),
  (lambda p: p["settings"].update({"seed": False}), {}, "the protocol has 'seed' = False"),
  (
    lambda p: p["sources"]["shapes"].update(count=True),
    {"eval.sets.shapes.shapes.count": 1},
    "protocol {'count': True",
  ),
  (lambda p: p["settings"].update({"eval.seeds": [float("nan")]}), {}, "holds nan, expected finite numbers"),
  (lambda p: p["settings"].update({"seed": 10**400}), {}, "the protocol has 'seed' = 1000"),
  (lambda p: p["settings"].update({"eval.batch_size": 10**9}), {}, "a batch by the protocol has"),
  (lambda p: p["settings"].update({"data.size": 20000}), {}, "a batch by the protocol has"),
  (lambda p: p["results"].update({"x": 3}), {}, "results that are no finite numbers"),
  (lambda p: p["results"].update({"x": {"rfvd": "x"}}), {}, "results that are no finite numbers"),
  (lambda p: p["results"].update({"x": {"rfvd": 10**400}}), {}, "results that are no finite numbers"),
  (lambda p: p.update(results=None), {}, "has results = None"),
  (lambda p: p.clear(), {}, "has format None"),
]


@pytest.mark.parametrize(("change", "changes", "sentence"), REFUSED, ids=[s for _, _, s in REFUSED])
def test_what_does_not_fit_is_one_sentence(change, changes, sentence, made, tmp_path):
  _, path = made
  if change:
    changed(path, change)
  with pytest.raises(ValueError) as caught:
    evaluate.run(config(**changes), tmp_path / "other", path)
  text = str(caught.value)
  assert sentence in text and len(text) < 400 and text.endswith((".", "?")) and "\n" not in text


@pytest.mark.slow
def test_the_flag(made, tmp_path):
  command = [sys.executable, "-m", "vftok.main", "--config=configs/vae.py:smoke", f"--workdir={tmp_path / 'run'}"]
  done = subprocess.run([*command, f"--protocol={made[1]}"], capture_output=True, text=True, check=False)
  assert done.returncode == 1 and "with --mode=train, expected --mode=eval" in done.stderr.splitlines()[-1]
  done = subprocess.run([*command, "--mode=eval", "--protocol=none"], capture_output=True, text=True, check=False)
  assert done.returncode == 1 and "error: none is no file, expected a protocol.json" in done.stderr.splitlines()[-1]


def test_files_that_are_none(tmp_path):
  (tmp_path / "a.json").write_text("[]")
  for name, sentence in (("none.json", "is no file"), ("a.json", "holds list")):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
      evaluate.run(config(), tmp_path / "run", tmp_path / name)


def batches(mask):
  for start in range(0, 6, 2):
    at = np.arange(start, start + 2)
    yield {"video": np.full((2, 1, 1, 1, 3), start, np.uint8), "_mask": mask[at], "source": at % 2, "index": at}


def test_clips_are_those_asked_for_in_their_order():
  mask = np.array([1, 1, 0, 1, 1, 1], bool)
  every = Clips(batches(mask), ("a", "b"))
  assert [batch["_mask"].sum() for batch in every] == [2, 1, 2]
  assert every.indices == {"a": [0, 4], "b": [1, 3, 5]} and len(every.sha256) == 64
  some = Clips(batches(mask | True), ("a", "b"), {"a": [0], "b": [3]})
  assert [batch["_mask"].tolist() for batch in some] == [[True, False], [False, True]]  # and no further
  with pytest.raises(ValueError, match="clip 2 of source 'a' is missing or cannot be read"):
    list(Clips(batches(mask), ("a", "b"), {"a": [0, 2, 4]}))


def test_fingerprints_are_of_all_weights():
  tree = {"a": np.ones(3), "b": np.zeros((2, 2))}
  assert protocol.fingerprint(tree) == protocol.fingerprint(dict(tree))
  assert protocol.fingerprint(tree) != protocol.fingerprint({**tree, "b": np.full((2, 2), 0.1)})


def test_generations_are_compared_by_their_own_numbers():
  old = Protocol("generation", "s", {}, {}, "m", {}, {}, {"made": {"gfvd": 2.0, "clip": 0.0}}, {})
  new = Protocol("generation", "s", {}, {}, "m", {}, {}, {"made": {"gfvd": 2.5}}, {})
  assert old.compared(old) == "all 2 numbers are the protocol's"
  assert old.compared(new) == "0 of 2 numbers are equal; clip/made is nan, was 0"
