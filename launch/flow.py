"""Draws how a value flows through vftok: `python launch/flow.py` writes launch/flow.svg."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT = 940, 300
INK, PALE, BLUE, GREEN, SAND = "#1f2933", "#f5f7fa", "#d6e6f5", "#d9efdc", "#f6ead2"
# name -> (left, top, width, fill, title, line below it)
BOXES = {
  "video": (10, 40, 96, PALE, "video", "F x H x W x 3"),
  "vae_in": (136, 40, 96, BLUE, "VAE", "latents"),
  "encoder": (262, 40, 128, BLUE, "ViT encoder", "time-causal, registers"),
  "fsq": (420, 40, 72, BLUE, "FSQ", "ids"),
  "decoder": (656, 40, 122, BLUE, "flow decoder", "any prefix, any noise"),
  "vae_out": (808, 40, 122, BLUE, "VAE", "video, F x H x W x 3"),
  "router": (262, 110, 128, SAND, "router", "loss at each count"),
  "budget": (420, 110, 102, SAND, "budget", "counts per step"),
  "asked": (10, 206, 222, PALE, "class, text, first frames", "or nothing"),
  "generator": (262, 206, 230, GREEN, "generator", "slot 0 of every step, then slot 1, ..."),
}
TOKENS = (560, 40)  # left, top of the table of tokens
STEPS, SLOTS, CELL, KEEP = 5, 8, 14, (8, 5, 3, 3, 2)
HIGH = 52
ARROWS = (
  ("video", "vae_in"),
  ("vae_in", "encoder"),
  ("encoder", "fsq"),
  ("decoder", "vae_out"),
  ("router", "budget"),
  ("asked", "generator"),
)


def text(x, y, words, bold: bool = False, anchor: str = "middle") -> str:
  style = 'font-size="13" font-weight="bold"' if bold else 'font-size="10.5"'
  return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {style}>{words}</text>'


def box(left, top, width, fill, title, line) -> str:
  middle = left + width / 2
  return (
    f'<rect x="{left}" y="{top}" width="{width}" height="{HIGH}" rx="7" fill="{fill}" stroke="{INK}"/>'
    + text(middle, top + 22, title, bold=True)
    + text(middle, top + 40, line)
  )


def arrow(*points) -> str:
  """A line through points, the last one its tip; all parts are level or upright."""
  (x0, y0), (x, y) = points[-2:]
  ahead, aside = ((x > x0) - (x < x0), (y > y0) - (y < y0)), 7
  back, wing = (x - aside * ahead[0], y - aside * ahead[1]), (4 * ahead[1], 4 * ahead[0])
  tip = f"{x},{y} {back[0] + wing[0]},{back[1] + wing[1]} {back[0] - wing[0]},{back[1] - wing[1]}"
  way = " ".join(f"{a},{b}" for a, b in points)
  return f'<polyline points="{way}" fill="none" stroke="{INK}"/><polygon points="{tip}" fill="{INK}"/>'


def between(a: str, b: str) -> str:
  (left, top, width, *_), (right, *_) = BOXES[a], BOXES[b]
  return arrow((left + width, top + HIGH / 2), (right - 3, top + HIGH / 2))


def tokens() -> str:
  left, top = TOKENS
  cells = [
    f'<rect x="{left + CELL * t}" y="{top + CELL * k}" width="{CELL - 2}" height="{CELL - 2}" '
    f'fill="{INK if k < KEEP[t] else "#dde3ea"}" fill-opacity="{1 - 0.09 * k:.2f}"/>'
    for t in range(STEPS)
    for k in range(SLOTS)
  ]
  middle, low = left + CELL * STEPS / 2, top + CELL * SLOTS
  return "".join(cells) + (
    text(middle, top - 24, "tokens", bold=True)
    + text(middle, top - 8, "time steps &#8594;")
    + text(middle, low + 14, "coarse on top,")
    + text(middle, low + 28, "light: not kept")
  )


def svg() -> str:
  left, top = TOKENS
  right, low = left + CELL * STEPS, top + CELL * SLOTS + 34
  x, y, w = BOXES["fsq"][0], BOXES["fsq"][1] + HIGH / 2, BOXES["fsq"][2]
  latents = BOXES["vae_in"][0] + BOXES["vae_in"][2] / 2
  router, budget, generator = (BOXES[name] for name in ("router", "budget", "generator"))
  lines = [
    *(between(a, b) for a, b in ARROWS),
    arrow((x + w, y), (left - 5, y)),
    arrow((right + 2, y), (BOXES["decoder"][0] - 3, y)),
    arrow((latents, 40 + HIGH), (latents, router[1] + HIGH / 2), (router[0] - 3, router[1] + HIGH / 2)),
    arrow((budget[0] + budget[2], budget[1] + HIGH / 2), (left - 5, budget[1] + HIGH / 2)),
    arrow(
      (generator[0] + generator[2], generator[1] + HIGH / 2),
      (left + CELL * STEPS / 2, generator[1] + HIGH / 2),
      (left + CELL * STEPS / 2, low + 3),
    ),
  ]
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
    f'font-family="Helvetica, Arial, sans-serif" fill="{INK}">'
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    + "\n".join([*lines, *(box(*values) for values in BOXES.values()), tokens()])
    + text(
      WIDTH - 12, HEIGHT - 14, "ids never depend on the budget: tokens are what is stored, sent and made", anchor="end"
    )
    + "</svg>\n"
  )


if __name__ == "__main__":
  Path(__file__).with_suffix(".svg").write_text(svg())
