"""What the published sizes say, number by number, against the papers (configs/); nothing is computed here."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from configs import ar, c2v, common, router, t2v, tokenizer
from vftok.models import config_json
from vftok.models.config import TokenizerConfig
from vftok.models.flow import APG, CFG
from vftok.tokenizer.checks import guidance_of

PUBLIC = {"EPFL-VILAB/videoflextok_d18_d18_k600": 128, "EPFL-VILAB/videoflextok_d18_d28": 256}
PUBLISHED = [("c2v", size) for size in ar.CLASS_SIZES] + [("t2v", size) for size in (*ar.TEXT_SIZES, "long")]
TOKENIZERS = ("d12_d12", "d18_d18", "d18_d18_stage2", "d18_d28", "d18_d28_stage2", "semantok")


def get(kind: str, size: str) -> ConfigDict:
  return {"c2v": c2v, "t2v": t2v, "router": router, "tokenizer": tokenizer}[kind].get_config(size)


@pytest.mark.parametrize("kind, size", PUBLISHED)
def test_generators_read_clips_as_their_tokenizer_was_trained(kind, size):
  """Kinetics-600 by the model of 128 pixels, Panda-70M by that of 256; 4 s in 17 frames, 8 fps for 81 frames only."""
  cfg = get(kind, size)
  settings = cfg.tokenize
  assert (
    settings.tokenizer == list(PUBLIC)[kind == "t2v"] and settings.size == PUBLIC[settings.tokenizer] == cfg.data.size
  )
  assert (settings.frames, settings.fps) == ((81, 8.0) if size == "long" else (17, 4.25))
  assert (cfg.data.frames, cfg.data.fps) == (settings.frames, settings.fps)  # films of a run, and its evaluation
  assert cfg.model.ar.positions == "flat"  # learned absolute
  directories = {cfg.data.sources.tokens.directory, cfg.eval.sets.val.tokens.directory}
  assert len(directories) == 1 and directories.pop().endswith(
    {"c2v": "k600", "t2v": "panda"}[kind] + "_long"[: 5 * (size == "long")]
  )


@pytest.mark.parametrize("size", ["d12", "d18", "d18_k600"])
def test_routers_are_over_tokenizers_that_exist(size):
  settings = router.get_config(size).label
  assert settings.tokenizer in PUBLIC or settings.tokenizer.startswith("runs/")
  assert settings.fps == 4.25 and settings.size == PUBLIC.get(settings.tokenizer, 128)


@pytest.mark.parametrize("size", TOKENIZERS)
def test_tokenizers_follow_the_paper(size):
  cfg = tokenizer.get_config(size)
  assert (cfg.data.fps, cfg.data.frames, cfg.loss.share, cfg.loss.nested) == (4.25, 17, "shared", "pow2")
  assert cfg.data.size == 256 if "d28" in size else cfg.data.size == 128
  tokens = cfg.batch_size * 5 * 16 * 16
  assert cfg.optim.warmup * tokens == pytest.approx(4e9, rel=0.01)  # 4 B VAE tokens
  total = {"d12_d12": 100e9, "semantok": 131e9}.get(size, 400e9)
  assert size.endswith("stage2") or cfg.steps * tokens == pytest.approx(total, rel=0.01)
  model = config_json.from_dict(TokenizerConfig, cfg.model.to_dict())
  assert (model.guidance, model.scale, model.solver_steps) == ("apg", 3.0, 50)  # SemanTok's, of retrained decoders
  asked = guidance_of(cfg.eval.guidance_kind, cfg.eval.guidance, model)
  assert (asked, cfg.eval.steps, cfg.loss.show_guidance) == (APG(3.0).of_model(), 50, 0.0)
  if size.endswith("stage2"):
    assert (cfg.freeze, model.decoder.mask, cfg.loss.given_probs) == (("encoder",), "full", (0.5, 0.5))


def test_what_is_ours_has_a_name_of_its_own():
  for kind, size in [("tokenizer", name) for name in TOKENIZERS] + [("c2v", "2.2b"), ("t2v", "1.1b"), ("t2v", "long")]:
    paper, own = (get(kind, f"{size}{form}").to_dict() for form in ("", "_ours"))
    assert own.pop("title") == paper.pop("title") + ", ours"
    part, key = ("loss", "share") if kind == "tokenizer" else ("model", "ar")
    assert paper[part].pop(key) != own[part].pop(key) and paper == own


def test_semantok_is_its_paper_as_a_config():
  cfg = tokenizer.get_config("semantok")
  model = config_json.from_dict(TokenizerConfig, cfg.model.to_dict())
  assert (model.encoder.channels, model.encoder.global_token) == (1024 + 16, 1024)
  assert (model.dino_frames, model.dino_class, model.decoder.readout) == ("avg", "per_frame", None)
  settings = cfg.loss
  assert (settings.flow, settings.repa, settings.prefix_latents, settings.prefix_features, settings.prefix_class) == (
    1.0,
    0.0,
    0.0,
    0.5,
    0.5,
  )
  assert (settings.features, settings.prefix_width, settings.prefix_depth, cfg.steps) == ("dinov2", 768, 2, 200_000)
  over = c2v.get_config("201m_semantok")
  assert over.tokenize.dino == cfg.dino and over.tokenize.size == 128 and over.tokenize.fps == 4.25


@pytest.mark.parametrize(
  "kind, size", [*PUBLISHED, ("c2v", "mini"), ("t2v", "mini"), ("c2v", "smoke"), ("t2v", "smoke")]
)
def test_every_generator_can_be_asked_for_its_evaluation(kind, size):
  """The flags of the README: --config.eval.generation.clip=DIRECTORY and SemanTok's protocol."""
  settings = get(kind, size).eval.generation
  assert set(ar.GENERATION) == set(settings.keys()) and set(ar.SEMANTOK) <= set(settings.keys())
  settings.clip = "directory"
  if (kind, size) in PUBLISHED:
    assert settings.fvd and settings.clips == 2048 and settings.anew  # each budget under its own guidance
    assert (
      max(settings.keeps) == get(kind, size).model.ar.slots and settings.steps == 0 and not settings.decoder
    )  # its tokenizer's own


def test_semantoks_protocol():
  settings = c2v.get_config("201m_semantok").eval.generation
  model = config_json.from_dict(TokenizerConfig, tokenizer.get_config("d18_d18").model.to_dict())
  assert guidance_of(settings.decoder, settings.decoder_scale, model) == APG(3.0, eta=0.0, momentum=0.0, threshold=0.6)
  assert (settings.steps, settings.clips, settings.anew) == (50, 2048, True)
  assert guidance_of("", 0.0, dataclasses.replace(model, guidance="cfg", scale=2.0)) == CFG(2.0)
  assert guidance_of("none", 3.0, model) is None and guidance_of("cfg", 1.0, model) is None
  with pytest.raises(ValueError, match="guidance is 'agp', expected one of apg, cfg, none"):
    guidance_of("agp", 3.0, model)


def test_mini_models_are_chosen_on_one_set_and_reported_on_another():
  val, test = common.mini_splits()
  assert (val["sim"]["split"], test["sim"]["split"]) == ("val", "test")
  for cfg in (t2v.get_config("mini"), t2v.get_config("mini_adaptive"), c2v.get_config("mini")):
    splits, sets = cfg.tokenize.splits, cfg.eval.sets
    assert (splits.val.sim.split, splits.test.sim.split, cfg.eval.generation.split) == ("val", "test", "test")
    assert (sets.val.tokens.split, sets.test.tokens.split) == ("val", "test")
    assert sets.val.tokens.directory == sets.test.tokens.directory == cfg.data.sources.tokens.directory
  assert router.get_config("mini").label.splits.val.sim.split == "val"  # labels are what routers are chosen on
