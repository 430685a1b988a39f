"""What decides a LARP or an AdapTok: every field has the name of its key in a released config.json."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class VQConfig:
  """Attributes:
  norm: of z before it is quantised: "none", "ln_d" over its channels, "ln_nd" over tokens and channels.
  l2_normalized: whether z and codes are compared, and codes read, at length 1.
  stochastic: ids are of a softmax over products with all codes, so argmax of these is the likeliest; else of distances.
  stochastic_temperature: of that softmax; below 0 it is learned.
  norm_module: how the file calls the norm's module.
  """

  bottleneck_dim: int
  codebook_size: int
  norm: str = "none"
  l2_normalized: bool = True
  stochastic: bool = True
  stochastic_temperature: float = 0.03
  commitment_loss_weight: float = 0.25
  codebook_loss_weight: float = 1.0
  norm_module: str = "norm_layer"


@dataclasses.dataclass(frozen=True)
class PriorConfig:
  """Sizes of the AR prior, as its tensors have them. heads: 0 where neither config nor name tell them.

  dropout: everywhere in it, in training alone (LARP section 4).
  """

  depth: int
  dim: int
  hidden: int
  length: int
  heads: int = 0
  l2_normalized: bool = True
  temperature: float = 1.0
  dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class QueryConfig:
  """Keys of config.json; below the blank line, what is not one of them.

  Attributes:
    vq: under `bottleneck.args`.
    groups, group_tokens: T and K, the blocks of time and the tokens of each; LARP has one block.
    prior: None where the file has no prior. scorer: whether the file has a scorer.
    read_frames: of a clip where it is shorter than `frame_num` (LARP); 0: all.
    leading: tensors that the file has with an axis of 1 in front, where it is not published whether there is one.
    dtype: compute dtype of the transformers; norms, softmax and the table of codes stay float32.
    remat: of the transformers, see `vftok.models.vit.BlocksConfig`.
    rest: the whole config.json as it was read, JSON text, so that `to_json` gives back what training put there.
  """

  bottleneck_token_num: int
  input_size: int
  frame_num: int
  temporal_patch_size: int
  patch_size: int
  encoder_hidden_size: int
  encoder_num_heads: int
  encoder_depth: int
  decoder_hidden_size: int
  decoder_num_heads: int
  decoder_depth: int
  learned_encoder_patch_pe: bool = False
  learned_encoder_latent_query_embed: bool = True
  learned_decoder_latent_pe: bool = False
  learned_decoder_patch_query_embed: bool = False
  use_encoder_patch_token_type_embed: bool = False
  use_encoder_latent_query_token_type_embed: bool = False
  use_decoder_latent_token_type_embed: bool = False
  use_decoder_patch_query_token_type_embed: bool = True
  latent_pe_scale_factor: float = 10000.0
  query_init_std: float = 0.02
  encoder_attn_type: str = "full_bi_attn"
  decoder_attn_type: str = "full_bi_attn"
  scorer_hidden_size: int = 0
  scorer_num_heads: int = 0
  scorer_depth: int = 0
  scorer_step: int = 0

  vq: VQConfig = VQConfig(0, 0)
  groups: int = 1
  group_tokens: int = 0
  nested: bool = False
  prior: PriorConfig | None = None
  scorer: bool = False
  read_frames: int = 0
  leading: tuple[str, ...] = ()
  dtype: str = "float32"
  remat: str = "none"
  rest: str = dataclasses.field(default="{}", compare=False, repr=False)

  @property
  def grid(self) -> tuple[int, int, int]:
    """(t, h, w) patches of a whole clip."""
    side = self.input_size // self.patch_size
    return self.frame_num // self.temporal_patch_size, side, side

  @property
  def frames(self) -> int:
    return self.read_frames or self.frame_num

  @property
  def read_grid(self) -> tuple[int, int, int]:
    """(t, h, w) patches of the frames that are read."""
    return self.frames // self.temporal_patch_size, *self.grid[1:]

  @property
  def group_patches(self) -> int:
    t, h, w = self.read_grid
    return t * h * w // self.groups

  @property
  def patch(self) -> tuple[int, int, int]:
    return self.temporal_patch_size, self.patch_size, self.patch_size
