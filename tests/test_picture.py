"""Grids of clips with labels."""

import numpy as np
import pytest

from vftok.show import picture

CAPTION = "a red duck slides to the left on a grey floor under a blue sky, still camera"


def rows_with_text(ground, left, width, bottom):
  """How many rows above the tiles show anything but the background."""
  bar = ground[:bottom, left : left + width].astype(int)
  return int((np.abs(bar - ground[0, 0]).max((1, 2)) > 60).sum())


@pytest.mark.parametrize("width", [32, 300])
def test_a_long_label_goes_on_below_and_stays_over_its_tile(width):
  labels = (f"{CAPTION}\n8 tokens", "VAE", "x" * 200)
  ground, corners, (_, tile_w) = picture._layout(labels, 32, width)
  top = corners[0][0]
  found = [rows_with_text(ground, left, tile_w, top) for _, left in corners]
  assert found[0] > 2 * found[1] > 10, "a caption in two lines or more, of letters that can be read"
  gap = ground[:top, corners[1][1] - 4 : corners[1][1]]
  assert (gap == ground[0, 0]).all(), "no label runs into the next"
  assert len({row for row, _ in corners}) == 1
  plain = picture._layout(("VAE", "VAE"), 32, width)[1][0][0]
  assert plain < top, "room only where it is needed"
