"""The tools that judge budgets: every assignment against the choices, and sampled quality at equal tokens."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from router_files import LEVELS, config

from configs import tokenizer as tokenizer_experiment
from vftok.budget import allocate, search
from vftok.budget.label import Label
from vftok.budget.reward import Reward, lengths
from vftok.show import page
from vftok.tools import adaptive
from vftok.tools.study import oracle_budgets, search_budgets


def test_ways_are_ranked_as_they_must_be():
  """Steps of unequal worth: knowing each clip beats knowing all, and that beats one number for every step."""
  rng, keep = np.random.default_rng(0), search.all_assignments(LEVELS, 4)
  tables = rng.gamma(0.3, 1.0, (12, 4, 1)) * np.array([1.0, 0.4, 0.0])
  losses = np.stack([t[np.arange(4), np.log2(keep).astype(int)].sum(1) for t in tables])
  reward = Reward.fitted(losses, LEVELS, 4)
  of = lambda table: lambda weight: allocate.among_levels(table, LEVELS, reward, weight)
  routers = {"exact": of(tables), "none": of(0 * tables), "silent": lambda weight: None}
  found = search_budgets.ways(losses, keep, LEVELS, reward, 1.2, routers)
  share = {name: values[0] for name, values in found.items()}
  assert share["exact"] == pytest.approx(100) and share["marginal gain"] > 97
  assert share["one uniform for all"] < share["best uniform per clip"] < 99
  assert share["one uniform for all"] < share["one for all"] < share["exact"]
  assert share["silent"] is None and share["none"] < share["exact"] and found["marginal gain"][1] < 0.8


def test_hard_budgets_are_ranked_among_their_own_total():
  rng, keep = np.random.default_rng(0), search.all_assignments(LEVELS, 4)
  tables = rng.gamma(0.3, 1.0, (12, 4, 1)) * np.array([8, 4, 1, 1])[:, None] * np.array([1.0, 0.4, 0.0])
  losses = tables[:, np.arange(4), np.log2(keep).astype(int)].sum(2)
  share = search_budgets.hard(losses, keep, LEVELS, 2, {"exact": tables, "wrong": -tables})
  assert share["exact"] == pytest.approx(100) and share["wrong"] == pytest.approx(0)
  assert 0 < share["one uniform for all"] < share["one for all"] < 100


def test_an_oracle_gains_what_is_no_luck():
  keep = oracle_budgets.candidates(LEVELS, 4, 2, 6)
  assert (keep.sum(1) == 8).all() and (keep[0] == 2).all() and len(np.unique(keep, axis=0)) == len(keep) == 6
  noise = np.random.default_rng(0).standard_normal((400, 6, 3))
  found = oracle_budgets.gains(noise)
  assert abs(found["oracle"] - found["uniform"]) < 0.15 < found["uniform"] - found["with luck"]
  known = 0.01 * noise + np.eye(6)[:, ::-1][np.arange(400) % 6][:, :, None]
  found = oracle_budgets.gains(-known)
  assert np.isclose(found["oracle"], -1, atol=0.05) and found["one for all"] > -0.3 and len(found["gains"]) == 400


def test_threshold_meets_the_mean_length():
  rng, keep = np.random.default_rng(1), search.all_assignments(LEVELS, 3)
  losses = rng.uniform(0.5, 2, (40, 1)) / lengths(keep) + 0.001 * rng.random((40, len(keep)))
  index = search_budgets.threshold(losses, keep, 6.0)
  assert lengths(keep)[index].mean() == pytest.approx(6.0, abs=0.3)
  hard = losses[:, 0].argmax()
  assert lengths(keep)[index][hard] > lengths(keep)[index][losses[:, 0].argmin()]


@pytest.mark.slow
def test_every_assignment_is_measured(random_model, routers, tmp_path, monkeypatch):
  cfg = config(random_model, tmp_path)
  cfg.label.times = (0.5,)
  names = {head: f"router {path}" for head, path in routers.items()}
  rows = search_budgets.compare(cfg, list(map(str, routers.values())), 2)
  assert set().union(*rows.values()) <= set(search_budgets.COLUMNS)
  both = {f"w {w:g}" for w in search_budgets.WEIGHTS} | {"mean 2"}
  assert set(rows[names["curves"]]) == set(rows["one for all"]) == set(rows["one uniform for all"]) == both
  assert set(rows[names["classes"]]) == {"w 1.2"}, "a router of classes knows one preference"
  assert rows["greedy forward"]["measured"] == f"{100 * 11 / 243:.1f} %"
  assert float(rows["marginal gain"]["w 1"].split()[0]) <= 100
  measured = lambda *clips: search_budgets.measured(
    Label.of(cfg), *random_model[1:], np.ones((1, 5), np.int32), *clips
  )[0]
  np.testing.assert_allclose(measured(1, 1), measured(2)[1:], rtol=1e-5)
  with pytest.raises(ValueError, match="--skip is 9, expected fewer"):
    measured(2, 9)
  monkeypatch.setattr(search_budgets, "MOST", 100)
  with pytest.raises(ValueError, match=r"243 assignments, expected at most 100 .*pass fewer"):
    search_budgets.compare(cfg, [], 2)


def test_assignments_have_one_mean():
  losses = np.random.default_rng(0).random((6, 5, 1)) * np.linspace(1, 0, 8)
  for budget in (1, 2.5, 8):
    ways = adaptive.assignments(losses, budget)
    assert set(ways) == set(adaptive.WAYS[:-1]) - ({"uniform"} if budget == 2.5 else set())
    for way, keep in ways.items():
      assert keep.shape == (6, 5) and keep.sum() == pytest.approx(budget * 30, abs=3), way
    assert (ways["one for all"] == ways["one for all"][0]).all()


def test_savings_are_read_off_the_curve():
  rows = {f"uniform {b}": {"per_seed": {"lpips": [0.4 - 0.1 * i]}} for i, b in enumerate((1, 2, 4))}
  rows |= {
    f"{way} {b}": {"per_seed": {"lpips": [0.35 - 0.1 * i]}}
    for way in adaptive.WAYS[1:]
    for i, b in enumerate((1, 2, 4))
  }
  assert adaptive.tokens_for(rows, [1, 2, 4], "router", 2) == [pytest.approx(2**0.5)]
  assert adaptive.savings(rows, [1.0, 2.0, 4.0])[1][:2] == ["2", "29.3 % fewer"]


def test_columns_of_words_are_to_the_left():
  cells = [["arm", "verdict", "LPIPS", "seeds"], ["nested", "held", "0.4", "-"], ["grid", "", "", "3"]]
  assert page.markdown_table(cells).splitlines()[1] == "| --- | --- | ---: | ---: |"


def test_a_section_is_added_once(tmp_path):
  path = tmp_path / "report.html"
  path.write_text("<p>a</p></html>")
  for text in ("one", "two"):
    page.add(path, "More", text)
  page.add(path, "Else", "three")
  assert [line for line in path.read_text().splitlines() if "!--" not in line] == [
    "<p>a</p>",
    "two",
    "three",
    "</html>",
  ]
  with pytest.raises(ValueError, match=r"is no page, expected a report\.html made before"):
    page.add(tmp_path / "nothing.html", "More", "x")


@pytest.mark.slow
def test_the_tool_leaves_numbers_and_pictures(random_model, routers, tmp_path, capsys):
  cfg = tokenizer_experiment.get_config("smoke")
  cfg.eval.batch_size, cfg.eval.steps, cfg.data.size = 2, 2, 16
  options = dict(
    config=cfg, model=str(random_model[0]), router=str(routers["curves"]), set="shapes", clips=3, seeds=2, rfvd=False
  )
  options |= dict(tries=2, budgets=["1", "2.5", "4"], out=str(tmp_path / "out"), page=str(tmp_path / "report.html"))
  (tmp_path / "report.html").write_text("<h1>before</h1>\n</html>\n")
  adaptive.run(SimpleNamespace(**options))
  text = (tmp_path / "report.html").read_text()
  assert text.startswith("<h1>before</h1>") and text.endswith("</html>\n") and text.count("data:image/png") == 2
  rows = json.loads((tmp_path / "out" / "adaptive.json").read_text())
  assert rows["uniform 1"]["lpips"] == pytest.approx(rows["router, shared 1"]["lpips"], rel=1e-4), "one token each"
  assert rows["router, tried 1"]["lpips"] == pytest.approx(rows["uniform 1"]["lpips"], rel=1e-4)
  assert rows["router 2.5"]["clips"] == 3 and len(rows["router 2.5"]["per_seed"]["cosine"]) == 2
  assert rows["router, tried 2.5"]["clips"] == 3
  for name in ("adaptive.png", "budgets.png"):
    assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
  assert "fewer" in capsys.readouterr().out
  with pytest.raises(ValueError, match="--set is 'nothing', expected one of shapes"):
    adaptive.run(SimpleNamespace(**options | {"set": "nothing"}))
