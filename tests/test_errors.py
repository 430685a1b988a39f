"""Bad input of every kind gives one sentence that names what is wrong, and never reaches a program."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_files import sentence, write
from safetensors.numpy import load_file

import vftok
from vftok.tokens import VideoTokens

KEY = jax.random.key(0)
VIDEO = np.zeros((1, 17, 32, 32, 3), np.uint8)
FLOAT = np.zeros((1, 17, 32, 32, 3), np.float32)
IDS = np.zeros((1, 5, 8), np.int32)
FULL = VideoTokens.full(IDS)
NOISE = np.zeros((1, 5, 4, 4, 16), np.float32)


def with_value(value):
  video = FLOAT.copy()
  video[0, 3, 4, 5, 1] = value
  return video


def tokens(ids=IDS, keep=None):
  return VideoTokens(ids, np.full((1, 5), 8, np.int32) if keep is None else keep)


def encode(video, **options):
  return lambda tok, params: tok.encode(params, video, **options)


def decode(tokens=FULL, key=KEY, **options):
  return lambda tok, params: tok.decode(params, tokens, key, **{"steps": 1, **options})


def latents(tokens=FULL, key=KEY, **options):
  return lambda tok, params: tok.decode_latents(params, tokens, key, **{"steps": 1, **options})


def broken(params):
  """Parameters whose encoder gives NaN."""
  return {**params, "encoder": jax.tree.map(lambda x: x * np.nan, params["encoder"])}


def truncate(keep):
  return lambda tok, params: FULL.truncate(keep)


def pieces(*shapes, dtype=np.uint8):
  return lambda tok, params: list(tok.encode_stream(params, [np.zeros(s, dtype) for s in shapes]))


BAD_INPUT = {
  # name: (call, what the sentence must name)
  "no frame": (encode(VIDEO[:, :0]), "(1, 0, 32, 32, 3)"),
  "one frame": (encode(VIDEO[:, :1]), "has 1 frames"),
  "F too small": (encode(VIDEO[:, :16]), "has 16 frames, expected a count that fits chunks such as 17"),
  "F between chunks": (encode(np.zeros((1, 40, 32, 32, 3), np.uint8)), "33 or 49"),
  "fit unknown": (encode(VIDEO, fit="crop"), "'crop'"),
  "height": (encode(np.zeros((1, 17, 64, 32, 3), np.uint8)), "64x32, expected 32x32"),
  "width": (encode(np.zeros((1, 17, 32, 31, 3), np.uint8)), "32x31"),
  "channels first": (encode(np.zeros((1, 3, 17, 32, 32), np.uint8)), "(1, 3, 17, 32, 32)"),
  "one channel": (encode(VIDEO[..., :1]), "(1, 17, 32, 32, 1)"),
  "alpha channel": (encode(np.zeros((1, 17, 32, 32, 4), np.uint8)), "(1, 17, 32, 32, 4)"),
  "no batch axis": (encode(VIDEO[0]), "(17, 32, 32, 3)"),
  "empty batch": (encode(VIDEO[:0]), "(0, 17, 32, 32, 3)"),
  "above 1": (encode(with_value(1.2)), "1.2"),
  "below -1": (encode(with_value(-1.5)), "-1.5"),
  "NaN": (encode(with_value(np.nan)), "NaN"),
  "infinite": (encode(with_value(np.inf)), "infinite"),
  "0..255 floats": (encode(with_value(255.0)), "0..255"),
  "jax array, 0..255": (encode(jnp.asarray(with_value(200.0))), "0..255"),
  "int32 video": (encode(VIDEO.astype(np.int32)), "int32"),
  "bool video": (encode(VIDEO.astype(bool)), "bool"),
  "text video": (encode(np.full(VIDEO.shape, "x")), "<U1"),
  "ragged piece": (
    lambda tok, params: list(tok.encode_stream(params, [[[0, 1], [2]]])),
    "a piece of the video is ragged",
  ),
  "ragged list": (encode([[[0, 1], [2]]]), "ragged"),
  "ragged stream": (pieces((1, 5, 32, 32, 3), (2, 5, 32, 32, 3)), "(2, 5, 32, 32, 3)"),
  "stream of another size": (pieces((1, 5, 32, 32, 3), (1, 5, 16, 32, 3)), "16x32"),
  "stream of nothing": (pieces(), "0 frames"),
  "stream left over": (pieces((1, 5, 32, 32, 3), (1, 14, 32, 32, 3)), "has 19 frames"),
  "latents of 16 frames": (lambda tok, params: tok.encode_latents(params, VIDEO[:, :16]), "13 or 17"),
  "latents of no frame": (lambda tok, params: tok.encode_latents(params, VIDEO[:, :0]), "(1, 0, 32, 32, 3)"),
  "id too large": (decode(tokens(np.full((1, 5, 8), 64000))), "64000, expected 0..63999"),
  "id negative": (decode(tokens(np.full((1, 5, 8), -1))), "-1"),
  "float ids": (decode(tokens(IDS.astype(np.float32))), "float32"),
  "list ids": (decode(tokens(IDS.tolist())), "list"),
  "bool keep": (decode(tokens(keep=np.ones((1, 5), bool))), "bool"),
  "ids cut": (decode(tokens(IDS[:, :, :4])), "(1, 5, 4)"),
  "ids of rank 2": (decode(tokens(IDS[0])), "(5, 8)"),
  "empty ids": (decode(tokens(IDS[:0], np.zeros((0, 5), np.int32))), "(0, 5, 8)"),
  "keep of another T": (decode(tokens(keep=np.zeros((1, 4), np.int32))), "(1, 4)"),
  "keep in tokens > K": (decode(tokens(keep=np.full((1, 5), 9))), "9, expected 0..8"),
  "keep in tokens < 0": (decode(tokens(keep=np.full((1, 5), -2))), "-2"),
  "truncate < 0": (truncate(-1), "-1, expected 0..8"),
  "truncate > K": (truncate(9), "9, expected 0..8"),
  "truncate one of T": (truncate([8, 8, 12, 8, 8]), "12"),
  "truncate ragged": (truncate([[1, 2], [3]]), "ragged"),
  "truncate wrong T": (truncate([1, 2, 3]), "(3,)"),
  "truncate float": (truncate(2.5), "2.5"),
  "truncate text": (truncate("all"), "'all'"),
  "truncate None": (truncate(None), "None"),
  "steps 0": (decode(steps=0), "steps is 0"),
  "steps negative": (latents(steps=-3), "steps is -3"),
  "steps fraction": (latents(steps=2.5), "2.5"),
  "steps bool": (latents(steps=True), "True"),
  "unknown solver": (decode(solver="rk4"), "'rk4'"),
  "guidance a number": (decode(guidance=3.0), "3.0"),
  "guidance of a wrong length": (decode(guidance=vftok.CFG(scale=jnp.ones(3))), "(3,)"),
  "guidance text": (decode(guidance=vftok.CFG(scale="high")), "'high'"),
  "first_frames 2": (decode(first_frames=VIDEO[:, :2]), "first_frames has 2"),
  "first_frames 17": (decode(first_frames=VIDEO), "first_frames has 17"),
  "first_frames none": (decode(first_frames=VIDEO[:, :0]), "first_frames"),
  "first_frames size": (decode(first_frames=VIDEO[:, :1, :16]), "16x32"),
  "first_frames batch": (decode(first_frames=np.zeros((2, 1, 32, 32, 3), np.uint8)), "first_frames"),
  "first_frames range": (decode(first_frames=with_value(99.0)[:, 3:4]), "0..255"),
  "noise shape": (decode(key=None, noise=[NOISE[:, :4]]), "(1, 4, 4, 4, 16)"),
  "noise entries": (decode(key=None, noise=[]), "noise has 0"),
  "noise one array": (decode(key=None, noise=NOISE), "noise"),
  "noise dtype": (latents(key=None, noise=NOISE.astype(np.int32)), "int32"),
  "noise NaN": (decode(key=None, noise=[NOISE + np.nan]), "noise[0] holds NaN or infinite values"),
  "latents' noise infinite": (latents(key=None, noise=jnp.asarray(NOISE - np.inf)), "noise holds NaN or infinite"),
  "first_latents NaN": (latents(first_latents=NOISE[:, :1] + np.nan), "first_latents holds NaN"),
  "latents' pixels NaN": (lambda tok, params: tok.decode_pixels(params, NOISE + np.nan), "latents holds NaN"),
  "guidance NaN": (decode(guidance=vftok.CFG(scale=float("nan"))), "guidance.scale is nan"),
  "guidance infinite in one step": (
    decode(guidance=vftok.CFG(scale=jnp.full(1, jnp.inf))),
    "guidance.scale is an array (1,) of float32",
  ),
  "guidance beyond float32": (decode(guidance=vftok.APG(scale=1e39)), "guidance.scale is 1e+39"),
  "momentum NaN": (decode(guidance=vftok.APG(scale=2.0, momentum=np.nan)), "guidance.momentum is nan"),
  "features NaN": (lambda tok, params: tok.encode(broken(params), VIDEO), "not finite, so they make no tokens"),
  "latents' noise shape": (latents(key=None, noise=NOISE[..., :8]), "(1, 5, 4, 4, 8)"),
  "no key and no noise": (decode(key=None), "neither key nor noise"),
  "no key for latents": (latents(key=None), "neither key nor noise"),
  "key a number": (decode(key=0), "key"),
  "first_mode": (latents(first_mode="soft"), "'soft'"),
  "first_latents shape": (latents(first_latents=NOISE[:, :1, :2]), "(1, 1, 2, 4, 16)"),
  "first_latents rank": (latents(first_latents=NOISE[0]), "first_latents"),
  "T of no chunk": (decode(VideoTokens.full(IDS[:, :4])), "4 time steps"),
  "T between chunks": (decode(VideoTokens.full(np.zeros((1, 7, 8), np.int32))), "7 time steps"),
  "two chunks of latents": (latents(VideoTokens.full(np.zeros((1, 9, 8), np.int32))), "9 time steps"),
  "no pieces": (lambda tok, params: VideoTokens.concat([]), "no token pieces"),
  "pieces of different K": (
    lambda tok, params: VideoTokens.concat([FULL, VideoTokens.full(IDS[:, :, :4])]),
    "(1, 5, 4)",
  ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(small, name):
  call, named = BAD_INPUT[name]
  with pytest.raises(ValueError) as caught:
    call(*small[:2])
  assert named in sentence(caught.value)


def test_a_model_without_null_vector_is_not_guided(small_dir, tmp_path):
  config, weights = (
    json.loads((small_dir / "config.json").read_text()),
    load_file(small_dir / "model.safetensors"),
  )
  del config["video_flex_tok"]["decoder"]["module_dict"]["dec_latent_dropout"]
  weights = {key: value for key, value in weights.items() if "nullcond" not in key}
  tok, params = vftok.Tokenizer.load(write(tmp_path / "m", config, weights))
  for guidance in (vftok.CFG(scale=3.0), vftok.APG(scale=20.0)):
    with pytest.raises(ValueError, match="no null vector") as caught:
      tok.decode_latents(params, FULL, KEY, guidance=guidance)
    sentence(caught.value)
