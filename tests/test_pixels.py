"""PSNR and SSIM against dm_pix."""

import numpy as np
import pytest

from vftok.evals.pixels import frame_scores


@pytest.mark.parametrize("size", [(11, 11), (64, 48), (13, 30)])
def test_frame_scores_are_those_of_dm_pix(size):
  dm_pix = pytest.importorskip("dm_pix")
  rng = np.random.default_rng(0)
  a = rng.random((4, *size, 3), np.float32)
  b = np.clip(a + 0.1 * rng.normal(size=a.shape), 0, 1).astype(np.float32)
  b[1], b[2], b[3] = a[1], 0.5, a[3] * 0.3
  mse, ssim = frame_scores(a, b)
  np.testing.assert_allclose(mse, dm_pix.mse(a, b), rtol=1e-6)
  np.testing.assert_allclose(ssim, dm_pix.ssim(a, b), atol=1e-6)
