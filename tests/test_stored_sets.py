"""Stored sets under damage: shards cut, emptied, flipped, missing, records of another shape, damaged recipes."""

import json

import numpy as np
import pytest

from vftok.data import curves, shards, tokens
from vftok.data.dataset_writer import whole_directory
from vftok.data.latents import latents, write_latents
from vftok.data.sources import make_source

META = dict(shape=[5, 4], fingerprint="f" * 16, tokenizer="tok", codebook_size=64, text="minilm", text_shape=[6, 8])


def example(i, seed=0):
  rng = np.random.default_rng([seed, i])
  ids, emb = rng.integers(0, 64, (5, 4)).astype(np.uint16), rng.normal(size=(6, 8)).astype(np.float16)
  return dict(ids=ids, caption=f"clip {i}", label=i % 3, name=f"n{i}", text_emb=emb, text_mask=np.arange(6) < i % 7)


@pytest.fixture
def made(tmp_path):
  """A set of 20 clips in three shards, one of which is without clips and left out."""
  out, work = tmp_path / "set", tmp_path / "work"
  work.mkdir()
  parts = {"train": [range(12), range(0), range(12, 20)], "val": [range(3)]}
  paths = {split: [work / f"{split}{n}" for n in range(len(of_split))] for split, of_split in parts.items()}
  for split, of_split in parts.items():
    for path, numbers in zip(paths[split], of_split, strict=True):
      assert shards.write_shard(path, tokens.features(META), map(tokens.stored, map(example, numbers))) == len(numbers)
  with whole_directory(out, META) as directory:
    counts = tokens.finish_tokens(directory, paths, META, ("a", "b", "c"))
  assert counts == {"train": 20, "val": 3}
  return out


def opened(directory):
  return make_source("tokens", "train", dict(directory=str(directory)))


def shard(directory, number=1):
  return directory / "vftok_tokens" / "1.1.0" / f"vftok_tokens-train.array_record-{number:05d}-of-00002"


def test_records_come_back(made):
  source = opened(made)
  assert len(source) == 20 and source.label_names == ("a", "b", "c")
  for i in range(20):
    record, wanted = source[i], example(i)
    np.testing.assert_array_equal(record["ids"], wanted["ids"])
    np.testing.assert_array_equal(record["text_mask"], wanted["text_mask"])
    np.testing.assert_array_equal(record["text_emb"][: i % 7], wanted["text_emb"][: i % 7])
    assert not record["text_emb"][i % 7 :].any() and record["caption"] == f"clip {i}" and record["label"] == i % 3


def test_text_features_take_two_bytes_a_number_of_real_tokens():
  big = META | dict(text_shape=[128, 4096])
  sizes = []
  for count in (20, 128):
    emb, mask = np.ones((128, 4096), np.float16), np.arange(128) < count
    stored = tokens.stored(example(1) | dict(text_emb=emb, text_mask=mask))
    features = tokens.features(big)
    sizes.append(len(features.serialize_example(features.encode_example(stored))))
  assert sizes[0] < 20 * 4096 * 2 + 500 and sizes[1] < 128 * 4096 * 2 + 500


def test_features_that_are_no_numbers_are_refused():
  bad = example(3)
  bad["text_emb"][1, 2] = np.inf
  with pytest.raises(ValueError, match=r"text features of 'clip 3' have gaps or are not finite"):
    tokens.stored(bad)


SIZE = dict(
  cut=lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  emptied=lambda path: path.write_bytes(b""),
  missing=lambda path: path.unlink(),
  longer=lambda path: path.write_bytes(path.read_bytes() + b"x"),
)


@pytest.mark.parametrize("kind", SIZE)
def test_a_bad_shard_is_named_when_the_set_is_opened(kind, made):
  SIZE[kind](shard(made))
  with pytest.raises(
    (ValueError, FileNotFoundError), match=r"00001-of-00002 (has [\d,]+ bytes|is missing).*get a whole"
  ):
    opened(made)


@pytest.mark.parametrize("kind", ["cut", "emptied", "missing"])
def test_also_where_nobody_wrote_down_its_bytes(kind, made):
  (shard(made).parent / shards.FACTS).unlink()
  SIZE[kind](shard(made))
  with pytest.raises((ValueError, FileNotFoundError), match=r"00001-of-00002"):
    source = opened(made)
    for i in range(len(source)):
      source[i]


def test_a_flipped_bit_is_named_and_other_shards_are_read(made):
  path = shard(made)
  data = path.read_bytes()
  place = data.index(b"clip 15")
  path.write_bytes(data[:place] + b"CLIP" + data[place + 4 :])
  source = opened(made)
  assert source[3]["caption"] == "clip 3"
  with pytest.raises(ValueError, match=r"record 15 of .*00001-of-00002 is damaged"):
    source[15]


def test_a_record_of_another_shape_or_dtype(made):
  recipe = json.loads((made / "recipe.json").read_text())
  for change, message in (
    (dict(shape=[5, 3]), r"ids uint16 \(5, 4\), expected uint16 \(5, 3\)"),
    (dict(text_shape=[6, 7]), "bytes of text"),
  ):
    (made / "recipe.json").write_text(json.dumps(recipe | change))
    with pytest.raises(ValueError, match=message):
      opened(made)[5]


def test_a_bad_record_is_no_reason_to_stop_training(made, tmp_path):
  from vftok.data import ClipSpec, make_loader

  path = shard(made)
  data = path.read_bytes()
  path.write_bytes(data.replace(b"clip 15", b"CLIP 15"))
  where = dict(t=dict(kind="tokens", directory=str(made)))
  log = tmp_path / "bad.jsonl"
  with make_loader(where, ClipSpec(), 4, process_index=0, process_count=1, bad_clips=log) as loader:
    for _, batch in zip(range(10), loader, strict=False):
      assert batch["_mask"].all()
  (row,) = map(json.loads, log.read_text().splitlines())
  assert "00001-of-00002 is damaged" in row["reason"]


DAMAGED = {
  "recipe.json": ["", "{", "[]", '{"shape": [5, 4]}', json.dumps(META | dict(shape=[5, "4"])), "\x00\xff"]
  + [json.dumps(META | change) for change in (dict(shape=[5, True]), dict(codebook_size=True))],
  "classes.json": ["{", "{}", '["a", 3]'],
  "vftok_tokens/1.1.0/dataset_info.json": ["", "{", "[]", '{"name": 3}'],
  "vftok_tokens/1.1.0/features.json": ["", "{", "[]"],
  "vftok_tokens/1.1.0/shards.json": ["", "[]", '{"a": 3}', '{"a": {"bytes": true}}'],
}


@pytest.mark.parametrize("file", DAMAGED)
def test_a_damaged_file_of_facts_is_a_sentence(file, made):
  for text in DAMAGED[file]:
    (made / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="damaged") as error:
      opened(made)
    assert len(str(error.value)) < 400 + 2 * len(str(made)) and "\n" not in str(error.value)


def test_other_kinds_of_sets(tmp_path):
  clips = [{"latents": np.full((2, 3, 3, 4), i, np.float32)} for i in range(3)]
  write_latents(tmp_path / "set", {"train": clips}, {"fingerprint": "abc"})
  (path,) = (tmp_path / "set").glob("**/*.array_record*")
  assert latents("train", directory=tmp_path / "set")[2]["latents"].max() == 2
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match=r"has [\d,]+ bytes, expected 131,072 as were written"):
    latents("train", directory=tmp_path / "set")
  path.write_bytes(data)
  (tmp_path / "set" / "recipe.json").write_text('{"fingerprint": 3, "shape": [1]}')
  with pytest.raises(ValueError, match=r"recipe.json is damaged \(shape is \[1\]\)"):
    latents("train", directory=tmp_path / "set")


def test_a_recipe_of_curves_has_whole_numbers(tmp_path):
  """JSON's true counts as 1 in Python."""
  facts = dict(levels=[1, 2], steps=5, random=4, seed=0, fingerprint="", codebook_size=32, drawn_shape=[0, 5])
  facts |= dict(latents_shape=[5, 4, 4, 4], losses_shape=[22, 5, 1])
  (tmp_path / "recipe.json").write_text(json.dumps(facts))
  assert curves.read_meta(tmp_path) == facts
  for change in (
    dict(drawn_shape=[True, 5]),
    dict(drawn_shape=[-1, 5]),
    dict(levels=[True, 2]),
    *({name: value} for name in ("steps", "random", "seed", "codebook_size") for value in (True, 1.0, -1)),
  ):
    (tmp_path / "recipe.json").write_text(json.dumps(facts | change))
    with pytest.raises(ValueError, match=rf"recipe\.json is damaged \({next(iter(change))} is "):
      curves.read_meta(tmp_path)


def test_a_shard_that_is_not_whole_is_written_again(tmp_path):
  path = tmp_path / "a"
  shards.write_shard(path, tokens.features(META), [tokens.stored(example(1))])
  assert shards.shard_facts(path)["clips"] == 1
  facts = path.with_name("a.json")
  written = facts.read_text()
  facts.write_text(json.dumps(json.loads(written) | {"clips": True}))
  assert shards.shard_facts(path) is None
  facts.write_text(written)
  path.write_bytes(path.read_bytes()[:-1])
  assert shards.shard_facts(path) is None and shards.shard_facts(tmp_path / "b") is None
  with pytest.raises(ValueError, match="a is not whole: run the same command again"):
    shards.finish(tmp_path / "set", "x", "1.0.0", "", tokens.features(META), {"train": [path]})
