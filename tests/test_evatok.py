"""EVATok behind the interface of families: counts fixed at encoding, files, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evatok_files import GOLDEN, random_model, random_video
from model_files import load_with, sentence, write
from safetensors.numpy import load_file

import vftok
from vftok.evals import reconstruction
from vftok.families.evatok import programs, reference
from vftok.families.evatok.api import EVATok
from vftok.io.vft import Vft
from vftok.io.video_writer import to_uint8
from vftok.tokens import Chooser, VideoTokens
from vftok.tools.parity_evatok import write_model


@pytest.fixture(scope="module")
def model():
  return random_model()


@pytest.fixture(scope="module")
def golden_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("evatok") / "golden"
  directory.mkdir()
  write_model(GOLDEN, directory)
  return directory


@pytest.mark.slow
def test_budgets_of_every_form_are_one_program(model):
  tok, params = model
  video = random_video(tok, chunks=2)
  jax.clear_caches()
  full = tok.encode(params, video)
  assert (full.ids.shape, full.nested, full.frames) == ((2, 4, 16), False, 8) and (full.keep == 16).all()
  per_step = tok.encode(params, video, budget=[4, 2, 16, 8])
  assert per_step.keep.tolist() == [[4, 2, 16, 8]] * 2
  per_video = tok.encode(params, video, budget=np.array([[4, 2, 16, 8], [16, 16, 16, 16]]))
  assert np.array_equal(per_video.ids[0], per_step.ids[0]) and np.array_equal(per_video.ids[1], full.ids[1])
  one = tok.encode(params, video, budget=jnp.int32(8))
  assert (one.keep == 8).all() and not np.array_equal(one.ids[..., :8], full.ids[..., :8])
  assert programs.encode_chunk._cache_size() == 1
  for tokens in (full, per_step, per_video):
    frames = tok.decode(params, tokens)
    assert frames.shape == video.shape and np.abs(frames).max() <= 1
  assert programs.decode_chunk._cache_size() == 1


def test_a_clip_in_a_batch_is_the_clip_alone(model):
  tok, params = model
  video = random_video(tok)
  both = tok.encode(params, video, budget=[[4, 8], [16, 2]])
  for i, budget in enumerate(([4, 8], [16, 2])):
    assert np.array_equal(tok.encode(params, video[i : i + 1], budget=budget).ids[0], both.ids[i])


def test_streams_and_padding_are_the_whole_video(model):
  tok, params = model
  video = np.uint8(127 + 127 * random_video(tok, chunks=2))[:, :7]
  counts = [4, 2, 16, 8]
  whole = tok.encode(params, video, fit="pad", budget=counts)
  assert whole.frames == 7 and whole.keep.tolist() == [counts] * 2
  pieces = list(tok.encode_stream(params, [video[:, :3], video[:, 3:]], fit="pad", budget=counts))
  assert [piece.keep.tolist()[0] for piece in pieces] == [[4, 2], [16, 8]]
  assert np.array_equal(VideoTokens.concat(pieces).ids, whole.ids)
  frames = list(tok.decode_stream(params, iter(pieces)))
  assert [f.shape[1] for f in frames] == [4, 3]
  assert np.array_equal(np.concatenate(frames, 1), tok.decode(params, whole))


class Motion:
  """Most tokens where more than a little moves, fewest elsewhere."""

  def __init__(self):
    self.seen = []

  def counts(self, tok, params, video):
    self.seen.append((video.shape, video.dtype, float(jnp.abs(video).max())))
    steps = video.reshape(video.shape[0], tok.chunk_steps, -1, *video.shape[2:])
    moved = jnp.abs(jnp.diff(steps, axis=2)).mean((2, 3, 4, 5))
    return jnp.where(moved > 0.1, tok.counts[-1], tok.counts[0])


def test_a_budget_may_look_at_each_clip_before_it_is_encoded(model):
  tok, params = model
  video = np.uint8(127 + 127 * random_video(tok, chunks=2))
  video[0, 2:4] = 9
  video[1, 4:] = 255
  budget = Motion()
  assert isinstance(budget, Chooser)
  tokens = tok.encode(params, video, budget=budget)
  assert tokens.keep.tolist() == [[16, 2, 16, 16], [16, 16, 2, 2]]
  assert budget.seen == [((2, 4, 8, 16, 3), jnp.float32, 1.0)] * 2
  assert np.array_equal(tokens.ids, tok.encode(params, video, budget=tokens.keep).ids)
  stream = VideoTokens.concat(list(tok.encode_stream(params, [video], budget=budget)))
  assert np.array_equal(stream.ids, tokens.ids) and np.array_equal(stream.keep, tokens.keep)


class Says:
  def __init__(self, answer):
    self.answer = answer

  def counts(self, tok, params, video):
    return self.answer


BAD_BUDGETS = [
  (3, "asks for 3 tokens in a time step, expected one of 2, 4, 8, 16"),
  (0, "asks for 0 tokens"),
  (32, "asks for 32 tokens"),
  ([4, 5], "asks for 5 tokens"),
  ([4, 4, 4], "shape (3,), expected an int, [2] (one count per time step) or [2, 2]"),
  ([[4, 4]], "shape (1, 2)"),
  ([[[4]]], "expected one of 2, 4, 8, 16 tokens, one per time step"),
  ([[4], [4, 4]], "expected one of 2, 4, 8, 16 tokens, one per time step"),
  (4.0, "budget is 4.0"),
  (True, "budget is True"),
  ("8", "budget is '8'"),
  (vftok.Auto(mean=4), "no router that comes with vftok"),
  (Says(5), "asks for 5 tokens"),
  (Says([4, 4, 4]), "shape (3,)"),
  (Says("many"), "budget is 'many'"),
]


@pytest.mark.parametrize("budget, names", BAD_BUDGETS)
def test_other_budgets_are_one_sentence(model, budget, names):
  tok, params = model
  with pytest.raises(ValueError) as caught:
    tok.encode(params, random_video(tok), budget=budget)
  assert names in sentence(caught.value) and len(str(caught.value)) < 400


def test_streams_ask_for_as_many_counts_as_come(model):
  tok, params = model
  video = random_video(tok, chunks=2)
  with pytest.raises(ValueError, match="counts for 4 time steps or more"):
    list(tok.encode_stream(params, [video], budget=[4, 4]))
  with pytest.raises(ValueError, match="counts for 6 time steps, expected 4"):
    list(tok.encode_stream(params, [video], budget=[4] * 6))
  with pytest.raises(ValueError, match="fit is 'crop'"):
    tok.encode_stream(params, [video], fit="crop")


def test_tokens_cannot_be_cut_and_keep_what_the_model_knows(model):
  tok, params = model
  tokens = tok.encode(params, random_video(tok), budget=8)
  assert np.array_equal(tokens.truncate(8).keep, tokens.keep)
  bad = [
    (lambda: tokens.truncate(4), "encode again with a budget"),
    (lambda: tok.decode(params, tokens.replace(keep=tokens.keep - 1)), "7 tokens in a time step"),
    (lambda: tok.decode(params, tokens.replace(keep=tokens.keep * 0)), "0 tokens in a time step"),
    (lambda: tok.decode(params, tokens.replace(ids=tokens.ids + 99)), "expected 0..63"),
    (lambda: tok.decode(params, tokens, steps=4), "decodes in one pass"),
    (
      lambda: tok.decode(params, VideoTokens.full(tokens.ids[:, :1], nested=False)),
      "expected 2 or 2 + a multiple of 2",
    ),
    (lambda: tok.encode({"encoder": {}}, random_video(tok)), "params are of another model"),
    (lambda: tok.encode(params, random_video(tok)[:, :3]), "3 frames"),
    (lambda: tok.encode(params, random_video(tok)[:, :, :4]), "4x16, expected 8x16"),
    (lambda: tok.encode(jax.tree.map(lambda x: x * np.nan, params), random_video(tok)), "are not finite"),
    (lambda: tok.decode(jax.tree.map(lambda x: x * np.nan, params), tokens), "are not finite"),
  ]
  for call, names in bad:
    with pytest.raises(ValueError) as caught:
      call()
    assert names in sentence(caught.value), names


def test_token_files_hold_what_is_kept(model):
  tok, params = model
  tokens = tok.encode(params, random_video(tok, batch=1), budget=[8, 2])
  vft = Vft.from_bytes(Vft.of(tokens, tok, 8.0, tok.fingerprint(params)).to_bytes())
  assert (len(vft.ids), vft.levels, vft.nested, vft.keep.tolist()) == (10, (64,), False, [8, 2])
  assert np.array_equal(tok.decode(params, vft.tokens()), tok.decode(params, tokens))
  with pytest.raises(ValueError, match="no order"):
    vft.truncate(2)


@pytest.mark.slow
def test_evaluations_encode_anew_for_every_count(golden_dir):
  tok, params = vftok.load(golden_dir)
  video = np.uint8(127 + 127 * random_video(tok))
  whole = dict(split="val", lpips_net=None, rfvd=False, media=2)
  found = reconstruction.evaluate(tok, params, [{"video": video}], **whole)
  rows = {row["keep"]: row for row in found.rows if row["keep"]}
  assert list(rows) == [2, 4, 8, 16, 32] and len({row["psnr"] for row in rows.values()}) == 5
  frames = tok.decode(params, tok.encode(params, video, budget=4))
  assert np.array_equal(np.stack([clip["keep 4"] for clip in found.media]), to_uint8(frames))


def test_codes_are_unit_vectors_of_the_table(model):
  tok, params = model
  codes, table = tok.codes_of(params, np.array([[[3, 0]]])), params["quantizer"]["codebook"]
  assert np.allclose(codes[0, 0], table[[3, 0]] / np.linalg.norm(table[[3, 0]], axis=1, keepdims=True), atol=1e-6)


def test_the_fingerprint_is_of_what_decides_ids(model):
  tok, params = model
  mine = tok.fingerprint(params)
  for part, same in (("decoder", True), ("encoder", False), ("quantizer", False)):
    other = {**params, part: jax.tree.map(lambda x: x + 1, params[part])}
    assert (tok.fingerprint(other) == mine) == same
  assert random_model(counts=(4, 8, 16))[0].fingerprint(params) != mine
  facts = tok.describe(params)
  assert facts["counts"] == [2, 4, 8, 16] and facts["tokens_per_step"] == 16 and not facts["nested"]


def test_both_layouts_are_bit_equal_round_trips(golden_dir, tmp_path):
  tok, params = vftok.load(golden_dir)
  assert isinstance(tok, EVATok) and vftok.Tokenizer.load(golden_dir)[0] == tok
  tok.export(params, tmp_path / "theirs")
  stored, mine = (load_file(path / "model.safetensors") for path in (golden_dir, tmp_path / "theirs"))
  assert stored.keys() == mine.keys() and all(np.array_equal(stored[key], mine[key]) for key in stored)
  assert json.loads((tmp_path / "theirs/config.json").read_text()) == json.loads(
    (golden_dir / "config.json").read_text()
  )
  tok.save(params, tmp_path / "ours")
  assert json.loads((tmp_path / "ours/config.json").read_text())["format"] == "vftok-evatok"
  for name in ("ours", "theirs"):
    again, same = vftok.load(tmp_path / name)
    assert again == tok and jax.tree.all(jax.tree.map(np.array_equal, same, params))


def test_switches_and_oblong_sizes_survive_export(tmp_path):
  tok, params = random_model(neck=6, norm_in=True)
  tok.export(params, tmp_path / "m")
  names = load_file(tmp_path / "m/model.safetensors").keys()
  assert {"encoder.conv_out.weight", "quant_conv.bias", "decoder.decoder_embed.weight", "decoder.ln_pre.bias"} <= names
  again, same = vftok.load(tmp_path / "m")
  assert again == tok and jax.tree.all(jax.tree.map(np.array_equal, same, params))
  odd = random_model(encoder=type(tok.cfg.encoder)(16, 1, 2, mlp_ratio=2))
  with pytest.raises(ValueError, match="save it in ours"):
    odd[0].export(odd[1], tmp_path / "odd")


def renamed(golden_dir, rename):
  weights = load_file(golden_dir / "model.safetensors")
  return json.loads((golden_dir / "config.json").read_text()), dict(rename(k, v) for k, v in weights.items())


def gigatok(key, value):
  halves = {"encoder.": "s2to1encoder.", "decoder.": "s1to2decoder."}
  for ours, theirs in halves.items():
    key = theirs + key.removeprefix(ours) if key.startswith(ours) else key
  return key, value


def test_gigatoks_names_and_wrappers_are_read(golden_dir, tmp_path):
  tok, params = vftok.load(golden_dir)
  config, weights = renamed(golden_dir, gigatok)
  weights["quantize.codebook_used"] = np.zeros(65_536, np.float32)
  both = {f"ema.{key}": value for key, value in weights.items()} | {
    f"model.{key}": -value for key, value in weights.items()
  }
  for name, tensors in (("plain", weights), ("both", both)):
    again, same = vftok.load(write(tmp_path / name, config, tensors))
    assert again == tok and jax.tree.all(jax.tree.map(np.array_equal, same, params))
  half = {key: value.astype(np.float16) for key, value in weights.items()}
  assert {x.dtype.name for x in jax.tree.leaves(vftok.load(write(tmp_path / "half", config, half))[1])} == {"float32"}


def test_switches_of_training_alone_change_nothing(golden_dir):
  """GigaTok's shipped configs say `rot`; its checkpoints have statistics where `codebook_show_usage` is on."""
  config = json.loads((golden_dir / "config.json").read_text())
  for switch in ("rot", "codebook_show_usage"):
    assert {reference.parse(config | {switch: on}) for on in (True, False)} == {reference.parse(config)}
    with pytest.raises(ValueError, match=f"{switch} = 'yes', expected true or false"):
      reference.parse(config | {switch: "yes"})


def test_unknown_and_missing_names_are_refused(golden_dir, tmp_path):
  config, weights = renamed(golden_dir, lambda key, value: (key, value))
  few = dict(weights)
  del few["encoder.ln_post.bias"]
  cases = [
    (weights | {"align_head.0.weight": np.zeros((2, 2), np.float32)}, "has unused align_head.0.weight"),
    (few, "lacks encoder.ln_post.bias"),
    (weights | {"head.bias": np.zeros(3, np.float32)}, "holds head.bias with shape (3,), expected (96,)"),
    (weights | {"head.bias": np.full(96, np.nan, np.float32)}, "NaN"),
  ]
  for i, (tensors, names) in enumerate(cases):
    with pytest.raises(ValueError) as caught:
      vftok.load(write(tmp_path / str(i), config, tensors))
    assert names in sentence(caught.value)


BAD_CONFIGS = [
  (dict(attention="flash"), "unknown key 'attention'"),
  (dict(frame_num=None), "frame_num = None"),
  (dict(frame_num=5), "patch"),
  (dict(input_size=[16]), "input_size = [16]"),
  (dict(input_size="16"), "input_size = '16'"),
  (dict(patch_size=5), "patch"),
  (dict(spatial_token_num_choices=[]), "spatial_token_num_choices"),
  (dict(spatial_token_num_choices=[4, 4]), "different whole numbers"),
  (dict(spatial_token_num_choices=[4, 24]), "power of two"),
  (dict(spatial_token_num_choices="32"), "spatial_token_num_choices"),
  (dict(encoder_heads=5), "encoder.heads"),
  (dict(decoder_depth=0), "decoder.depth"),
  (dict(decoder_width=True), "decoder_width = True"),
  (dict(codebook_embed_dim=-1), "code_dim"),
  (dict(neck_width=-1), "neck"),
  (dict(ln_pre="yes"), "ln_pre = 'yes'"),
]


@pytest.mark.parametrize("change, names", BAD_CONFIGS)
def test_bad_configs_are_one_sentence(golden_dir, tmp_path, change, names):
  config = json.loads((golden_dir / "config.json").read_text())
  with pytest.raises(ValueError) as caught:
    load_with(golden_dir, tmp_path / "m", config | change)
  assert names in sentence(caught.value) and len(str(caught.value)) < 400


def test_missing_keys_orders_and_versions(golden_dir, tmp_path):
  config = json.loads((golden_dir / "config.json").read_text())
  for key in sorted(set(config) - {"spatial_token_num_choices"}):
    with pytest.raises(ValueError, match=f"lacks the key '{key}'"):
      reference.parse({name: value for name, value in config.items() if name != key})
  falling = config | {"spatial_token_num_choices": config["spatial_token_num_choices"][::-1]}
  assert reference.parse(falling) == reference.parse(config)
  for change, names in ((dict(version=2), "version is 2"), (dict(blocks=1), "unknown key 'blocks'")):
    with pytest.raises(ValueError, match=names):
      load_with(golden_dir, tmp_path / "m", {"format": "vftok-evatok", "version": 1} | change)
  with pytest.raises(ValueError, match="dtype is 'int8'"):
    vftok.load(golden_dir, dtype="int8")
  with pytest.raises(ValueError, match="'vae' is no option"):
    vftok.load(golden_dir, vae="x")
