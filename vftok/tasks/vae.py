"""Training the VAE: L1 (or L2) + KL + LPIPS, adversarial where asked for (VidTok's losses, arXiv 2412.13061)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vftok.convert.load import load_vae, save_vae
from vftok.io.video_writer import to_uint8
from vftok.models import config_json, flow
from vftok.models.discriminator import Discriminator
from vftok.models.flops import vae_flops
from vftok.models.vae import VAEConfig
from vftok.runtime.words import brief
from vftok.tasks import Metrics, mean
from vftok.tasks.linear_codes import patch_code
from vftok.tasks.losses import VAELoss
from vftok.tokenizer import programs


class VAETask:
  """Parameters {"vae"} and, with an adversarial term, {"critic"}; frozen {"lpips"} or nothing."""

  load_vae, save_vae = staticmethod(load_vae), staticmethod(save_vae)  # of a VAE by itself

  def __init__(self, cfg: ConfigDict):
    self.cfg, self.loss_cfg = cfg, VAELoss.of(cfg)
    self.model = self._model(cfg.model.to_dict())
    self.vae, self.critic = self.model.module(), Discriminator(width=self.loss_cfg.critic_width)
    n = self.model.space_stride
    self.size = (cfg.data.size, cfg.data.size)
    if cfg.data.size % n:
      raise ValueError(f"data.size is {cfg.data.size}, expected a multiple of the VAE's {n}.")

  def _model(self, model: dict[str, Any]):
    """The config, whose `module()` has `encode` and `decode`."""
    return config_json.from_dict(VAEConfig, model)

  def init(self, key: jax.Array) -> Any:
    first, second = jax.random.split(key)
    video = jnp.zeros((1, 1, self.model.space_stride, self.model.space_stride, self.model.in_channels))
    params = {"vae": self.vae.init(first, video)["params"]}
    if self.loss_cfg.adversarial:
      params["critic"] = self.critic.init(second, jnp.zeros((1, *self.size, 3)))["params"]
    return params

  def frozen(self) -> Any:
    if not self.loss_cfg.lpips:
      return {}
    from vftok.frozen.metrics.weights import load_lpips

    return {"lpips": load_lpips(self.loss_cfg.lpips_net)}

  def start(self, params, batches: Iterable[dict]) -> Any:
    if self.cfg.init_from:
      cfg, vae = self.load_vae(self.cfg.init_from)
      if jax.tree.map(jnp.shape, vae) != jax.tree.map(jnp.shape, params["vae"]):
        raise ValueError(f"init_from holds another VAE ({brief(cfg, 250)}): use the model it was made with.")
      return {**params, "vae": vae}
    if not (self.loss_cfg.fit_batches and self.model.linear):
      return params
    clips = [batch["video"] for batch in itertools.islice(batches, self.loss_cfg.fit_batches)]
    code = patch_code(clips, self.model.patch, self.model.z_channels, self.loss_cfg.fit_whiten)
    vae = params["vae"]
    return {**params, "vae": {side: {**vae[side], "linear": code[side]} for side in ("encoder", "decoder")}}

  def loss(self, params, frozen, batch, keys_B, step) -> tuple[jax.Array, Metrics]:
    cfg, video = self.loss_cfg, programs.to_float(batch["video"])
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys_B)
    apply = lambda x, method: self.vae.apply({"params": params["vae"]}, x, method=method)
    latents, logvar = apply(video, "encode")
    off = _off_unit(latents)
    if cfg.sample:
      noise = jax.vmap(lambda key: flow.gaussian(key, latents.shape[1:]))(keys[:, 0])
      kl_B = 0.5 * (jnp.square(latents) + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3, 4))
      latents = latents + jnp.exp(0.5 * logvar) * noise
    else:
      kl_B = 0.5 * jnp.square(latents).sum((1, 2, 3, 4))
    if cfg.noise:
      # How much noise a clip gets is drawn too, so the decoder stays sharp on clean latents.
      noise = jax.vmap(lambda key: flow.gaussian(key, latents.shape[1:]))(keys[:, 2])
      latents += cfg.noise * jax.vmap(jax.random.uniform)(keys[:, 3])[:, None, None, None, None] * noise
    out = apply(latents, "decode")

    error, all_but_first = out - video, (1, 2, 3, 4)
    terms = {"kl": cfg.kl * kl_B / np.prod(video.shape[1:])}
    if cfg.unit:
      terms["unit"] = cfg.unit * jnp.broadcast_to(off, kl_B.shape)
    if cfg.l1:
      terms["l1"] = cfg.l1 * jnp.abs(error).mean(all_but_first)
    if cfg.l2:
      terms["l2"] = cfg.l2 * jnp.square(error).mean(all_but_first)
    if cfg.lpips or cfg.adversarial:
      pick = jax.vmap(lambda key: jax.random.choice(key, video.shape[1], (cfg.frames,), replace=False))(keys[:, 1])
      real, fake = (jnp.take_along_axis(v, pick[:, :, None, None, None], 1) for v in (video, out))
      flat = lambda v: v.reshape(-1, *v.shape[2:])
      per_clip = lambda x: x.reshape(len(video), -1).mean(1)
    if cfg.lpips:
      from vftok.frozen.metrics.vgg import lpips

      terms["lpips"] = cfg.lpips * per_clip(lpips(frozen["lpips"], flat(fake), flat(real)))
    if cfg.adversarial:
      # One backward pass for both players: each sees the other through a stopped gradient.
      judge = lambda critic, frames: self.critic.apply({"params": critic}, frames)
      on = cfg.adversarial * (step >= cfg.adversarial_from)
      terms["generator"] = -on * per_clip(judge(jax.lax.stop_gradient(params["critic"]), flat(fake)))
      hinge = jax.nn.relu(1 - judge(params["critic"], flat(real)))
      hinge += jax.nn.relu(1 + judge(params["critic"], jax.lax.stop_gradient(flat(fake))))
      terms["critic"] = 0.5 * per_clip(hinge)
    metrics = {name: mean(value) for name, value in terms.items()}
    metrics["psnr"] = mean(-10 * jnp.log10(jnp.square(error / 2).mean(all_but_first) + 1e-10))
    return sum(terms.values()).mean(), metrics

  @property
  def dtype(self) -> str:
    return self.model.dtype

  def flops(self) -> float:
    return 3 * sum(vae_flops(self.model, self.cfg.data.frames, *self.size))

  # ---- looking

  def _reconstruct(self, params):
    vae = self.vae

    @jax.jit
    def run(vae_params, video):
      mean_latents, _ = vae.apply({"params": vae_params}, programs.to_float(video), method="encode")
      return vae.apply({"params": vae_params}, mean_latents, method="decode")

    return lambda video: run(params["vae"], video)

  def media(self, params, frozen, batch) -> dict[str, np.ndarray]:
    from vftok.show.picture import video_rows

    video = batch["video"][:6]
    return {"reconstruction": video_rows({"original": video, "VAE": to_uint8(self._reconstruct(params)(video))})}

  def evaluate(self, params, frozen, batches, total, split, out) -> dict[str, float]:
    from vftok.evals import reconstruction, report

    cfg = self.cfg.eval
    options = dict(split=split, lpips_net=cfg.lpips_net or None, rfvd=cfg.rfvd, media=cfg.media, total=total)
    evaluation = reconstruction.evaluate_vae(self._reconstruct(params), batches, **options)
    report.write_report(out, [evaluation], title=self.cfg.title, fps=self.cfg.data.fps)
    return evaluation.scalars()

  def save(self, params, frozen, directory) -> None:
    self.save_vae(self.model, params["vae"], directory)


def _off_unit(latents_BxTxhxwxC) -> jax.Array:
  """How far the channels are from mean 0 and variance 1 over the batch: a flow wants latents of one scale."""
  mean, spread = latents_BxTxhxwxC.mean((0, 1, 2, 3)), jnp.sqrt(latents_BxTxhxwxC.var((0, 1, 2, 3)) + 1e-6)
  return jnp.mean(jnp.square(mean) + jnp.square(spread - 1))
