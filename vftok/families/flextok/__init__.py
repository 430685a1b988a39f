"""FlexTok (Bachmann et al. 2025, arXiv 2502.13967): images to nested tokens, VideoFlexTok's design at T = 1."""

from vftok.runtime import lazy

__getattr__, __dir__ = lazy.names(
  __name__, {"FlexTok": "vftok.families.flextok.api", "load_vae": "vftok.families.flextok.vae_weights"}
)
