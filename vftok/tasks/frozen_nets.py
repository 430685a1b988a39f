"""The frozen nets of tokenizer training: what the encoder reads beside latents, and what its tokens must predict.

SemanTok (arXiv 2610.00686) has one DINOv2 for both: its features are the encoder's input, and two heads rebuild patch
and class features from the kept prefix. Where both are the same weights, one pass over the frames serves both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from vftok.frozen import features
from vftok.frozen.features.dino_inputs import dino_features, joined, load_dino, reads_dino
from vftok.frozen.features.dinov2 import DINOv2
from vftok.frozen.features.frames import FeatureNet
from vftok.models.config import TokenizerConfig
from vftok.tasks.losses import TokenizerLoss
from vftok.tokenizer import programs


class Seen(NamedTuple):
  """Attributes:
  grid: float32 [B, T, h, w, D + C], what the encoder reads; latents alone where it reads no features.
  vector: float32 [B, T, D] for register 0, or None.
  patches, classes: targets float32 [B, T, h', w', D] on the decoder's patches and [B, T, 1, 1, D], where asked for.
  """

  grid: jax.Array
  vector: jax.Array | None = None
  patches: jax.Array | None = None
  classes: jax.Array | None = None


class FrozenNets:
  """Attributes:
  dino, target: the net that the encoder reads, and that of the targets; None where the config has no such thing.
  params: {"dino", "features"} of those that there are; without "features" where both are one net.
  """

  def __init__(
    self, loss: TokenizerLoss, dino: str, model: TokenizerConfig, load_dino=load_dino, load_features=features.load
  ):
    """Raises ValueError where the config asks for a net that it does not name, or for what its net does not have."""
    self.loss, self.model, self.params, self.shared = loss, model, {}, False
    self.dino: DINOv2 | None = None
    self.target: FeatureNet | None = None
    if dino or reads_dino(model):
      if not dino:
        raise ValueError("the encoder reads DINOv2 features: set config.dino to its weights (facebook/dinov2-large).")
      self.dino, self.params["dino"] = load_dino(model, dino)
    if loss.repa or loss.prefix_features or loss.prefix_class:
      self.shared = loss.features == "dinov2" and self.dino is not None and loss.features_path in ("", dino)
      if self.shared:
        self.target = self.dino
      else:
        self.target, self.params["features"] = load_features(loss.features, loss.features_path or None)
    if loss.prefix_class and not isinstance(self.target, DINOv2):
      raise ValueError(
        f"loss.prefix_class is set and {loss.features} has no class feature: set loss.features to dinov2."
      )

  def see(self, frozen: dict[str, Any], batch: dict[str, jax.Array], latents, grid: tuple[int, int, int]) -> Seen:
    """What a batch's clips are to encoder and heads, without gradient.

    Args:
      grid: (T, h', w') of the decoder's patches.

    Raises:
      ValueError: the batch has latents and no video, of which nets see nothing.
    """
    if self.dino is None and self.target is None:
      return Seen(latents)
    if "video" not in batch:
      raise ValueError("the sources hold latents, and the config's frozen nets see video: train on video.")
    video = programs.to_float(batch["video"])
    patches = classes = None
    seen = Seen(latents)
    if self.dino is not None:
      own = dino_features(self.model, self.dino, frozen["dino"], video, latents.shape[2:4])
      seen = Seen(*joined(self.model, *own, latents))
    if self.target is not None:
      if self.shared and self.model.dino_frames:
        patches, classes = self.target.pool(own[0], grid), own[1]
      else:
        patches, classes = self._targets(frozen["dino" if self.shared else "features"], video, grid)
      classes = None if classes is None else classes[:, :, None, None]
    return jax.tree.map(jax.lax.stop_gradient, seen._replace(patches=patches, classes=classes))

  def _targets(self, params, video, grid):
    reduce = self.loss.features_reduce
    if self.loss.prefix_class:
      return self.target.targets_with_class(params, video, grid, reduce)
    return self.target.targets(params, video, grid, reduce=reduce), None

  def flops(self, grid: tuple[int, int, int], latent_size: tuple[int, int]) -> float:
    """Forward FLOPs of one clip."""
    total = 0.0
    if self.dino is not None:
      total += self.dino.flops((grid[0], *latent_size), "mean" if self.model.dino_frames == "avg" else "first")
    if self.target is not None and not (self.shared and self.model.dino_frames):
      total += self.target.flops(grid, self.loss.features_reduce)
    return total
