"""What class-to-video and text-to-video share: the generator over stored tokens, at the published sizes."""

from __future__ import annotations

import dataclasses

from configs import common
from vftok.io.packaged import cache_dir
from vftok.models.ar import ARConfig
from vftok.models.config import GeneratorConfig
from vftok.tasks.losses import ARLoss

# Depth by published size: width is 64 * depth (VideoFlexTok section 6.2). Text models are named by theirs.
CLASS_SIZES = {"49m": 10, "85m": 12, "201m": 16, "287m": 18, "393m": 20, "679m": 24, "864m": 26, "1.3b": 30, "2.2b": 36}
TEXT_SIZES = {"66m": 10, "113m": 12, "268m": 16, "0.4b": 18, "0.5b": 20, "0.9b": 24, "1.1b": 26, "3.2b": 36, "5.2b": 43}


def model(
  depth: int, *, text: bool, slots: int = 0, width: int = 0, head_dim: int = 64, lengths: str = "none", **own
) -> dict:
  """A generator's config as a plain dict; what stored tokens say (vocabulary, steps, slots, levels) is filled in later.

  lengths: "length_first" or "end_of_step" for a model that says its own (vftok/models/lengths.py).
  """
  names = dict(ctx_dim=384, n_ctx_null=16) if text else {}
  ar = ARConfig(vocab=1, steps=1, slots=slots or 1, depth=depth, width=width, head_dim=head_dim, **names, **own)
  data = dataclasses.asdict(GeneratorConfig(ar))
  data["ar"] |= dict(slots=slots, lengths=lengths)
  return data


def tokens(name: str = "tokens", **own) -> dict:
  return dict(tokens=dict(kind="tokens", directory=str(cache_dir() / name), **own))


GENERATION = dict(  # of `--mode=eval`: generated clips against held-out ones
  clips=64,  # 0: no such evaluation
  split="val",  # of config.tokenize.splits; numbers to report are of one that nothing was chosen on
  keeps=(1, 2, 4, 8, 16),  # of models that say lengths: means, and their own lengths beside them
  seed=0,
  anew=False,  # each budget's tokens made under its own guidance (SemanTok); False: prefixes of the largest
  steps=25,  # of the decoder; 0: its own
  decoder="",  # its guidance: "apg", "cfg", "none"; "": CFG by loss.show_guidance
  decoder_scale=3.0,  # of "apg" and "cfg"
  guidance=0.0,  # of the generator; 0: its own, by budget
  fvd=True,
  classifier_steps=1500,  # of the attribute classifier, where there are rendered scenes; 0: none
  clip="",  # a directory with a CLIP of yours (openai/clip-vit-base-patch32): its score beside the others
  pool=2000,  # training clips that samples are compared with
  prompts=(),  # shown side by side under one noise
  beside="",  # another generator over the same tokens, shown under the same prompts
)

# SemanTok's protocol: 2,048 clips, each budget under its own guidance, 50 decoder steps with APG 3.0; read `gfvd_vae`.
SEMANTOK = dict(clips=2048, anew=True, steps=50, decoder="apg", decoder_scale=3.0)


SAMPLE = dict(  # of `--mode=sample`
  prompts="",  # a text file, one prompt per line; or .jsonl of {"text": ...} and {"label": ...}
  keeps=(),  # tokens per time step, a column each; (): all. Means of models that say lengths; (): their own
  frames=0,  # 1 + a multiple of 4; 0: what one sequence holds
  seed=0,
  batch_size=8,
  guidance=0.0,  # of the generator; 0: its own, by budget
  temperature=1.0,
  steps=0,  # of the decoder; 0: its own
)


def paper(depth: int, of: str, *, text: bool, slots: int, tokens_seen: float, frames: int = 17):
  """SemanTok's recipe, VideoFlexTok's sizes. `tokens_seen`: of the whole run; the batch is 512 sequences (unknown).

  `of` is one of common.RELEASED. Mesh and remat are for v5p slices, by `vftok.tools.sizing`, see launch/README.md.
  """
  batch, directory = 512, f"tokens_{of}" + ("_long" if frames > 17 else "")
  steps = round(tokens_seen / batch / (((frames - 1) // 4 + 1) * slots))
  fps, size = common.LONG_FPS if frames > 17 else common.CLIP_FPS, common.RELEASED[of]["size"]
  return common.base(
    task="ar",
    title=f"{'t2v' if text else 'c2v'} d{depth}",
    steps=steps,
    batch_size=batch,
    # A piece of a width that is no multiple of 8 is gathered as a sum, at twice the traffic: 64 * depth / 16 if odd.
    mesh=dict(data=-1, fsdp=1 if depth <= 20 else 4 if depth <= 26 or depth % 2 else 16),
    model=model(
      depth,
      text=text,
      slots=slots,
      positions="flat",  # learned absolute ones, as SemanTok's
      dtype="bfloat16",
      remat="dots_with_no_batch_dims_saveable",
    ),
    loss=ARLoss(show_guidance=0.0),
    data=dict(sources=tokens(directory), frames=frames, size=size, fps=fps, workers=8),
    eval=dict(
      sets=dict(val=tokens(directory, split="val")),
      generation={
        **GENERATION,
        "clips": 2048,
        "keeps": tuple(k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= slots),
        "anew": True,
        "steps": 0,
        "classifier_steps": 0,  # there are no rendered scenes: alignment is `clip`'s
      },
    ),
    optim=dict(lr=1.024 / (64 * depth), warmup=round(0.025 * steps), final=0.01, b1=0.9, b2=0.95, weight_decay=0.05),
    ema=0.9998,  # unknown
    sample=SAMPLE,
    log_every=50,
    save_every=2000,
    media_every=5000,
    tokenize=tokenize(
      common.RELEASED[of]["tokenizer"],
      common.videos(),
      frames=frames,
      size=size,
      fps=fps,
      **(dict(text="t5", text_path="google/umt5-xxl", text_tokens=128) if text else {}),  # a directory of yours
    ),
  )


def ours(cfg):
  """What we do otherwise on purpose: positions by time step and slot, which any order and uneven budgets can use."""
  cfg.title += ", ours"
  cfg.model.ar.positions = "time_slot"
  return cfg


def tokenize(tokenizer: str, sources: dict, val: dict | None = None, test: dict | None = None, **own) -> dict:
  """What `python -m vftok.tools.tokenize_dataset` makes the stored tokens from."""
  val = val or {name: {**source, "split": "val"} for name, source in sources.items()}
  return (
    dict(
      tokenizer=tokenizer,
      dino="",  # DINOv2 weights, where the tokenizer's encoder reads them
      splits=dict(train=sources, val=val) | (dict(test=test) if test else {}),
      text="",  # a text encoder, "minilm" or "t5"
      text_path="",
      text_tokens=32,
      router="",  # whose predictions lengths are learned from: a directory, "auto": the shipped one, "": none
      # Of tokenizers whose ids depend on how many there are: tokens of all steps where there is no router, 0: the most;
      # and how many first frames have tokens of their own before a clip's, and how many in each time step (EVATok).
      keep=0,
      condition=dict(frames=0, counts=()),
      frames=17,
      size=256,
      fps=8.0,
      batch_size=16,
    )
    | own
  )


def smoke(*, text: bool, directory: str, lengths: str = "none"):
  """Two seconds a step on any machine: for tests."""
  return common.smoke(
    task="ar",
    title="AR smoke",
    model=model(1, text=text, lengths=lengths, **(dict(n_classes=3) if not text else {})),
    loss=ARLoss(given_probs=(0.5, 0.5), show_steps=2),
    data=dict(sources=dict(tokens=dict(kind="tokens", directory=directory)), workers=0),
    eval=dict(
      sets=dict(val=dict(tokens=dict(kind="tokens", directory=directory, split="val"))),
      batch_size=4,
      generation={**GENERATION, "clips": 0},
    ),
    sample=SAMPLE,
    tokenize=tokenize("", common.shapes(8), common.shapes(4), size=16, batch_size=4, text="minilm" if text else ""),
  )
