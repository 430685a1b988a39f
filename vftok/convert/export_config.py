"""The config.json of a released VideoFlexTok model for a config of ours: the inverse of `reference_config.parse`."""

from __future__ import annotations

import dataclasses
from typing import Any

from vftok.models.config import TokenizerConfig
from vftok.models.layers import PositionConfig
from vftok.models.transformer import StackConfig

ENCODER_NAMES = {
  "patch_in": "enc_patch_emb",
  "patch_positions": "enc_posemb_module",
  "registers": "enc_register_module",
  "packer": "enc_seq_packer",
  "stack": "enc_transformer",
  "head": "enc_to_latents",
}
DECODER_NAMES = {
  "codes_in": "dec_from_latents",
  "register_positions": "dec_registers_posemb_module",
  "mask": "dec_nested_dropout",
  "prefix": "dec_prefix_masking",
  "null": "dec_latent_dropout",
  "patch_in": "dec_noise_patch_emb",
  "patch_positions": "dec_patches_posemb_module",
  "packer": "dec_seq_packer",
  "time": "dec_time_embedder",
  "stack": "dec_transformer",
  "head": "dec_to_patches",
  "readout": "dec_repa_head",
}


def reference_config(cfg: TokenizerConfig) -> dict[str, Any]:
  """The config.json that describes `cfg` in the reference's terms."""
  size = cfg.vae.space_stride * cfg.latent_size[0]
  steps = cfg.chunk_latents
  wrapper = {
    "video_flex_tok": {
      "_target_": "videoflextok.wrappers.VideoFlexTok",
      "vae": _spec(
        "compressors.vidtok.VidTokVAE",
        images_read_key="rgb",
        vae_latents_read_key="vae_latents_reconst",
        vae_latents_write_key="vae_latents",
        images_reconst_write_key="rgb_reconst",
        tokenizer_id="vidtok_kl_causal_488_16chn",
      ),
      "encoder": encoder_part(cfg),
      "decoder": decoder_part(cfg),
      "regularizer": _spec(
        "regularizers.quantize_fsq.FSQ",
        latents_read_key="enc_registers_latents",
        quants_write_key="quants",
        tokens_write_key="token_ids",
        levels=list(cfg.levels),
      ),
      "flow_matching_noise_module": _spec(
        "flow_matching.noise_modules.PrefixMinRFNoiseModule",
        clean_images_read_key="vae_latents",
        noised_images_write_key="vae_latents_noised",
        timesteps_write_key="timesteps",
        sigmas_write_key="sigmas",
        prefix_len=[0, 1],
        keep_prefix_prob=[0.5, 0.5],
      ),
      "pipeline": _spec(
        "flow_matching.pipelines.VideoMinRFPipeline",
        _partial_=True,
        target_sizes_read_key="vae_video_sizes",
        latents_read_key="quants",
        timesteps_read_key="timesteps",
        noised_videos_read_key="vae_latents_noised",
        reconst_write_key="vae_latents_reconst",
        out_channels=cfg.decoder.channels,
        cond_vae_latents_key="cond_vae_latents",
      ),
    },
    "chunk_size": cfg.chunk_frames,
    "overlap_size_frames": cfg.overlap_frames,
    "vae_video_sizes": [steps, *cfg.latent_size],
    "video_preprocess_args": {
      "size": size,
      "chunk_size": cfg.chunk_frames,
      "overlap_size_frames": cfg.overlap_frames,
    },
  }
  if not (cfg.dino_frames or cfg.encoder.global_token):
    return wrapper
  semantok = {
    "dino_input": bool(cfg.dino_frames),
    "global_token": bool(cfg.encoder.global_token),
    "dino_frame_agg": cfg.dino_frames or "avg",
    "global_token_mode": cfg.dino_class,
  }
  return {"videoflextok": wrapper, "semantok": semantok}


def encoder_part(cfg: TokenizerConfig) -> dict[str, Any]:
  return _sequential(_encoder(cfg))


def decoder_part(cfg: TokenizerConfig) -> dict[str, Any]:
  return _sequential(_decoder(cfg))


def _spec(target: str, **arguments) -> dict[str, Any]:
  return {"_target_": f"videoflextok.{target}", **arguments}


def _sequential(modules: dict[str, Any]) -> dict[str, Any]:
  return _spec("model.utils.wrappers.SequentialModuleDictWrapper", module_dict=modules)


def _channels(direction: str, read: str, write: str) -> dict[str, Any]:
  op = {"_target_": f"videoflextok.model.utils.dict_ops.{direction}", "_partial_": True}
  return _spec("model.utils.dict_ops.PerSampleOp", read_key=read, write_key=write, per_sample_op=op)


def _patches(read: str, write: str, part) -> dict[str, Any]:
  return _spec(
    "model.preprocessors.patching.PatchEmbedder",
    input_tensor_list_read_key=read,
    patches_list_write_key=write,
    n_patches_write_key=write.replace("patches", "n_patches"),
    patch_sizes=list(part.patch),
    channels_in=part.channels,
    dim=part.stack.dim,
    flatten_patches=False,
  )


def _positions(key: str, dim: int, position: PositionConfig) -> dict[str, Any]:
  return _spec(
    "model.utils.posembs.PositionalEmbeddingAdder",
    read_key=key,
    write_key=key,
    dim=dim,
    max_sizes=list(position.max_sizes),
    posemb_type=position.kind,
    posemb_scaling="absolute",
  )


def _packer(prefix: str, keys: list[str], part, **more) -> dict[str, Any]:
  names = ("prefix2prefix", "prefix2nonprefix", "nonprefix2prefix", "nonprefix2nonprefix")
  flexible = part.mask == "flexible"
  return _spec(
    "model.preprocessors.flex_seq_packing.BlockWiseSequenceInterleavePacker",
    input_list_read_keys=keys,
    packed_seq_write_key=f"{prefix}_packed_seq",
    block_mask_write_key=f"{prefix}_block_mask",
    inner_packed_shapes_write_key=f"{prefix}_ps_inner",
    outer_packed_shapes_write_key=f"{prefix}_ps_outer",
    mask_mode="time_block_causal_last" if flexible else part.mask,
    cross_timestep_attention_config=dict(zip(names, part.cross, strict=True)) if flexible else None,
    pad_to_multiple=128,
    compile_block_mask=False,
    **more,
  )


def _transformer(prefix: str, stack: StackConfig, **more) -> dict[str, Any]:
  fields = (
    "dim",
    "depth",
    "head_dim",
    "mlp_ratio",
    "gated_mlp",
    "qk_norm",
    "qkv_bias",
    "proj_bias",
    "mlp_bias",
  )
  defaults = {f.name: f.default for f in dataclasses.fields(StackConfig)}
  changed = {
    f: getattr(stack, f) for f in fields if f in ("dim", "depth", "head_dim") or getattr(stack, f) != defaults[f]
  }
  return _spec(
    "model.trunks.transformers.FlexTransformer",
    input_seq_read_key=f"{prefix}_packed_seq",
    output_seq_write_key=f"{prefix}_packed_seq",
    block_mask_read_key=f"{prefix}_block_mask",
    **changed,
    **more,
  )


def _unpacker(prefix: str, keys: list[str]) -> dict[str, Any]:
  return _spec(
    "model.postprocessors.seq_unpacking.SequenceInterleavedUnpacker",
    packed_seq_read_key=f"{prefix}_packed_seq",
    inner_seq_write_keys=keys,
    inner_packed_shapes_read_key=f"{prefix}_ps_inner",
    outer_packed_shapes_read_key=f"{prefix}_ps_outer",
  )


def _encoder(cfg: TokenizerConfig) -> dict[str, Any]:
  enc, dim = cfg.encoder, cfg.encoder.stack.dim
  modules = {
    "enc_channels_to_last": _channels("channels_first_to_last", "vae_latents", "vae_latents_bthwc"),
    "enc_patch_emb": _patches("vae_latents_bthwc", "enc_patches", enc),
  }
  if enc.positions is not None:
    modules["enc_posemb_module"] = _positions("enc_patches", dim, enc.positions)
  modules["enc_register_module"] = _spec(
    "model.preprocessors.registers.RegistersTemporal2D",
    input_tensor_list_read_key="enc_patches",
    register_sizes_read_write_key="register_sizes",
    registers_write_key="enc_registers",
    dim=dim,
    t_max=enc.t_max,
    n_min=enc.registers,
    n_max=enc.registers,
  )
  modules["enc_seq_packer"] = _packer("enc", ["enc_patches", "enc_registers"], enc)
  modules["enc_transformer"] = _transformer("enc", enc.stack)
  modules["enc_unpacker"] = _unpacker("enc", ["enc_patches", "enc_registers"])
  modules["enc_to_latents"] = _spec(
    "model.postprocessors.heads.LinearHead",
    read_key="enc_registers",
    write_key="enc_registers_latents",
    dim=dim,
    dim_out=enc.out_dim,
    **({} if enc.head_bias else {"proj_bias": False}),
    use_mup_readout=False,
    weight_init_style="xavier",
    dtype_override="fp32",
  )
  return modules


def _decoder(cfg: TokenizerConfig) -> dict[str, Any]:
  dec, dim = cfg.decoder, cfg.decoder.stack.dim
  linear = {"read_key": "quants", "write_key": "dec_quants", "dim_in": dec.code_dim, "dim": dim}
  modules = {"dec_from_latents": _spec("model.preprocessors.linear.LinearLayer", **linear)}
  if dec.register_positions is not None:
    modules["dec_registers_posemb_module"] = _positions("dec_quants", dim, dec.register_positions)
  overwrite = {
    "mask": (
      "token_dropout.MaskedNestedDropout",
      {"eval_keep_k_read_key": "eval_keep_k", "size_sampling_mode": "pow2"},
    ),
    "prefix": ("token_dropout.MaskedPrefixDropout", {"eval_prefix_len_read_key": "eval_prefix_len"}),
    "null": (
      "nullcond.LearnedNullCond",
      {"eval_drop_flag_read_key": "eval_dropout_mask", "dropout_prob": 0.1},
    ),
  }
  for role in dec.replacements:
    target, more = overwrite[role]
    modules[DECODER_NAMES[role]] = _spec(f"model.preprocessors.{target}", read_write_key="dec_quants", dim=dim, **more)
  modules["dec_noise_channels_to_last"] = _channels(
    "channels_first_to_last", "vae_latents_noised", "vae_latents_noised_bthwc"
  )
  modules["dec_noise_patch_emb"] = _patches("vae_latents_noised_bthwc", "dec_patches", dec)
  if dec.positions is not None:
    modules["dec_patches_posemb_module"] = _positions("dec_patches", dim, dec.positions)
  modules["dec_seq_packer"] = _packer(
    "dec",
    ["dec_patches", "dec_quants"],
    dec,
    emb_packing_fn_write_key="dec_emb_packing_fn",
    per_subseq_embs=True,
  )
  modules["dec_time_embedder"] = _spec(
    "model.preprocessors.time_embedding.TimestepEmbedder",
    timesteps_read_key="timesteps",
    time_embedding_write_key="dec_temb",
    dim=dim,
    frequency_embedding_size=dec.time_features,
    max_timestep=dec.max_timestep,
  )
  modules["dec_transformer"] = _transformer(
    "dec",
    dec.stack,
    adaLN_emb_read_key="dec_temb",
    adaLN_packing_fn_read_key="dec_emb_packing_fn",
    adaLN_expansion=dec.stack.adaln,
  )
  modules["dec_unpacker"] = _unpacker("dec", ["dec_patches", "dec_registers_out"])
  if dec.readout is not None:
    modules["dec_repa_head"] = _spec("model.postprocessors.heads.TransformerHead", read_key="dec_patches", dim=dim)
  modules["dec_to_patches"] = _spec(
    "model.postprocessors.heads.ToPatchesLinearHead",
    read_key="dec_patches",
    write_key="vae_latents_reconst",
    dim=dim,
    channels_out=dec.channels,
    patch_sizes=list(dec.patch),
    use_mup_readout=False,
    weight_init_style="zero",
    dtype_override="fp32",
    **({"adaLN_emb_read_key": "dec_temb"} if dec.head_adaln else {}),
    **({} if dec.head_bias else {"proj_bias": False}),
  )
  modules["dec_channels_to_first"] = _channels("channels_last_to_first", "vae_latents_reconst", "vae_latents_reconst")
  return modules
