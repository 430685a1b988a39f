"""Packed clips: what goes in comes out, as from stored frames; damage is one sentence and never a picture."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from bare import run_bare

from vftok.data import ClipSpec, make_loader
from vftok.data.clip import load_clip
from vftok.data.packed import packed, write_packed
from vftok.data.sources import make_source
from vftok.tools import pack

ONE = dict(process_index=0, process_count=1)


def clip(frames, seed, split="train", **own):
  rng = np.random.default_rng(seed)
  y, x, t = np.mgrid[:20, :28, :frames].astype(np.float32)
  smooth = [128 + 100 * np.sin(rng.uniform(0, 6) + x / 9 + y * rng.uniform(0, 0.2) + t / 5) for _ in range(3)]
  video = np.stack(smooth, -1).transpose(2, 0, 1, 3).astype(np.uint8)
  return {"video": video, "split": split, "caption": f"clip {seed}", "label": seed % 2, **own}


CLIPS = [clip(9, 0), clip(30, 1), clip(5, 2), clip(9, 3, "val", name="third"), clip(7, 4, "val")]


@pytest.fixture(scope="module", params=["WEBP", "AVIF"])
def file(request, tmp_path_factory):
  path = tmp_path_factory.mktemp("packed") / "clips.npz"
  write_packed(path, CLIPS, fps=8.0, codec=request.param, label_names=("even", "odd"))
  return path


def test_what_went_in(file):
  source = packed("all", path=file)
  assert len(source) == 5 and source.label_names == ("even", "odd")
  assert source.meta["size"] == [20, 28] and source.meta["fps"] == 8.0
  for given, i in zip(CLIPS, range(5), strict=True):
    record = source[i]
    error = abs(record["frames"].astype(int) - given["video"])
    assert record["frames"].shape == given["video"].shape
    assert error.max() == 0 if source.meta["codec"] == "WEBP" else error.mean() < 2
    assert (record["caption"], record["label"], record["fps"]) == (given["caption"], given["label"], 8.0)
  assert source[3]["name"] == "third" and source[4]["name"] == "clips.npz:val:4"
  assert len(packed("train", path=file)) == 3 and len(packed("train", path=file, frames=6)) == 2
  assert [r["name"] for r in map(packed("val", path=file).__getitem__, range(2))] == ["third", "clips.npz:val:1"]


def test_windows_cover_a_long_clip(file):
  source, whole = packed("train", path=file, window=10), packed("train", path=file)
  records = [source[i] for i in range(len(source))]
  assert [len(r["frames"]) for r in records] == [9, *[10] * 5, 5]
  firsts = [int(r["name"].partition("+")[2] or 0) for r in records[1:6]]
  assert firsts == [0, 5, 10, 15, 20]
  for record, first in zip(records[1:6], firsts, strict=True):
    assert np.array_equal(record["frames"], whole[1]["frames"][first : first + 10])
  captions, labels = source.describe(np.array([0, 3, 6]))
  assert captions.tolist() == ["clip 0", "clip 1", "clip 2"] and labels.tolist() == [0, 1, 0]


def test_take_is_load_clip(file):
  source = pickle.loads(pickle.dumps(packed("train", path=file, frames=6)))
  spec = ClipSpec(frames=4, size=(12, 12), flip=True, scale=(0.7, 1.0), fps=4.0)
  indices, seeds = np.array([1, 0, 1, 1]), np.array([3, 4, 5, 2**63], np.uint64)
  for own in (seeds, None):
    video = source.take(indices, spec, own)["video"]
    for k, i in enumerate(indices):
      rng = None if own is None else np.random.default_rng(int(own[k]))
      assert np.array_equal(video[k], load_clip(source[i], spec, rng))
  assert not np.array_equal(source.take(indices, spec, seeds)["video"][0], video[0])


def test_training_reads_it_where_little_is_installed(file):
  out = run_bare(f"""
    from vftok.data import ClipSpec, make_loader
    sources = dict(p=dict(kind="packed", path={str(file)!r}, frames=6), s=dict(kind="shapes", size=16))
    with make_loader(sources, ClipSpec(frames=4, size=(8, 8)), 6, process_index=0, process_count=1) as loader:
      batch = next(iter(loader))
    print(batch["video"].shape, sorted(batch["caption"])[-1])
  """)
  assert out.strip() == "(6, 4, 8, 8, 3) clip 1"


def test_a_clip_that_is_too_short_is_named(file):
  with (
    make_loader({"p": dict(kind="packed", path=file)}, ClipSpec(frames=6, size=(8, 8)), 8, **ONE) as loader,
    pytest.raises(ValueError, match="train:2 has 5 frames at 8 frames per second, expected at least 6"),
  ):
    next(iter(loader))


DAMAGE = {
  "offsets backwards": (lambda a: a["offsets"].__setitem__(2, a["offsets"][1]), "its offsets do not cut its"),
  "offsets beyond": (lambda a: a["offsets"].__setitem__(-1, 10**9), "its offsets do not cut its"),
  "negative offset": (lambda a: a["offsets"].__setitem__(0, -5), "its offsets do not cut its"),
  "offsets that wrap": (
    lambda a: a["offsets"].__setitem__(slice(1, 3), [-(2**63), 2**63 - 1]),
    "its offsets do not cut",
  ),
  "one clip less": (lambda a: a.update(frames=a["frames"][:-1]), "it has 4 clips and other counts beside them"),
  "no frames": (lambda a: a["frames"].__setitem__(0, 0), "a clip has 0 or 30 frames"),
  "a billion frames": (lambda a: a["frames"].__setitem__(0, 10**9), "a clip has 5 or 1000000000 frames"),
  "more frames than there are": (lambda a: a["frames"].__setitem__(1, 31), "is damaged at clip 1 (it has"),
  "a picture of zeros": (lambda a: a["blob"].__setitem__(slice(0, a["offsets"][1]), 0), "is damaged at clip 0"),
  "another format's picture": (lambda a: a.update(blob=a["blob"][::-1].copy()), "is damaged at clip 0"),
  "label": (lambda a: a["label"].__setitem__(0, 2), "a label is 0 or 2"),
  "float offsets": (lambda a: a.update(offsets=a["offsets"].astype(np.float64)), "offsets is float64"),
  "flat captions": (lambda a: a.update(caption=np.array("x")), "caption is <U1 ()"),
  "no blob": (lambda a: a.pop("blob"), "it lacks blob"),
  "pickled": (lambda a: a.update(name=np.array([{}] * 5, object)), "name is object (5,)"),
  "meta of nothing": (lambda a: a.update(meta=np.array("{")), "is no whole packed file"),
  "meta of another": (lambda a: a.update(meta=np.array("[]")), "its meta is not of format vftok-packed 1"),
}
HEADERS = {  # an array's shape and type as its header says, over 12 bytes
  "a terabyte": ("blob", (2**40,), "|u1", "blob has 12 bytes, and (1099511627776,) of uint8 are 1099511627776"),
  "beyond all arrays": ("blob", (0, 2**62, 2**62), "|u1", "blob is uint8 (0, 4611686018427387904"),
  "beyond all numbers": ("frames", (2**70,), "<i4", "frames has 12 bytes, and (1180591620717411303424,) of int32"),
  "below none": ("frames", (-1,), "<i4", "frames is int32 (-1,)"),
  "long text": ("name", (3,), "<U2000000000", "name is no array"),
  "objects": ("label", (3,), "|O", "label is object (3,)"),
  "no characters": ("caption", (3,), "<U1", "caption holds what is no text"),
  "too little": ("meta", (), "<U4", "meta has 12 bytes, and () of <U4 are 16"),
}
META = {
  "size": ([20, 10**6], "its size is"),
  "fps": (0, "its fps is 0"),
  "codec": ("PNG", "codec is 'PNG', expected one of AVIF, WEBP"),
  "label_names": ("even", "its label_names are not a list"),
  "version": (2, "its meta is not of format"),
  "version ": (True, "its meta is not of format"),
  "size ": ([True, 20], "its size is"),
}


def refused(path, arrays, sentence):
  np.savez(path, **arrays)
  with pytest.raises(ValueError) as error:
    packed("all", path=path)
  assert (sentence in str(error.value) and str(path) in str(error.value)) or "codec" in sentence
  assert len(str(error.value)) < 400 + len(str(path)) and "\n" not in str(error.value)


def arrays_of(file):
  with np.load(file, allow_pickle=False) as found:
    return {key: found[key].copy() for key in found}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(file, name, tmp_path):
  arrays, (damage, sentence) = arrays_of(file), DAMAGE[name]
  damage(arrays)
  refused(tmp_path / "bad.npz", arrays, sentence)


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_read_before_their_arrays(file, name, tmp_path):
  key, shape, kind, sentence = HEADERS[name]
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": kind})
  with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
    for member in whole.namelist():
      bad.writestr(member, header.getvalue() + b"\xff" * 12 if member == f"{key}.npy" else whole.read(member))
  with pytest.raises(ValueError) as caught:
    packed("all", path=tmp_path / "bad.npz")
  assert sentence in str(caught.value) and len(str(caught.value)) < 400


def test_a_header_that_is_cut_short(file, tmp_path):
  with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
    for member in whole.namelist():
      data = whole.read(member)
      bad.writestr(member, data.replace(b",), }", b",(, }") if member == "frames.npy" else data)
  with pytest.raises(ValueError, match="frames is no array"):
    packed("all", path=tmp_path / "bad.npz")


@pytest.mark.parametrize("key", META)
def test_bad_meta_is_refused(file, key, tmp_path):
  arrays, (value, sentence) = arrays_of(file), META[key]
  arrays["meta"] = np.array(json.dumps({**json.loads(str(arrays["meta"])), key.strip(): value}))
  refused(tmp_path / "bad.npz", arrays, sentence)


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9, 0.999])
def test_a_cut_file_is_refused(file, keep, tmp_path):
  data = file.read_bytes()
  (tmp_path / "cut.npz").write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
  with pytest.raises(ValueError, match="is no whole packed file"):
    packed("all", path=tmp_path / "cut.npz")


def test_bytes_changed_on_the_way_are_refused(file, tmp_path):
  data = bytearray(file.read_bytes())
  place = len(data) // 3
  data[place : place + 8] = bytes(255 - b for b in data[place : place + 8])
  (tmp_path / "bad.npz").write_bytes(data)
  with pytest.raises(ValueError, match=r"bad\.npz is no whole packed file"):
    packed("all", path=tmp_path / "bad.npz")


def test_memory_splits_and_absence(file):
  with pytest.raises(ValueError, match="needs 73,920 bytes of memory for split 'train', the limit is 1,000"):
    packed("train", path=file, limit=1000)
  with pytest.raises(ValueError, match="split is 'test', expected one of train, val, all"):
    packed("test", path=file)
  with pytest.raises(ValueError, match="has no clip of 31 frames in split 'all'"):
    packed("all", path=file, frames=31)
  with pytest.raises(FileNotFoundError, match=r"vftok\.tools\.pack"):
    packed("all", path=file.with_name("none.npz"))
  with pytest.raises(ValueError, match=r"clip 1 is uint8 \(5, 20, 27, 3\), expected uint8 \[F, 20, 28, 3\]"):
    write_packed(file.with_name("b.npz"), [CLIPS[0], {"video": CLIPS[2]["video"][:, :, 1:]}], fps=8)
  assert not file.with_name("b.npz").exists()


def test_the_tool(tmp_path, capsys):
  out = tmp_path / "shapes.npz"
  source = '{"kind": "shapes", "size": [24, 30], "frames": 20, "count": 3}'
  options = ["--source", source, "--splits", "train", "val", "--size", "16", "--codec", "WEBP"]
  assert pack.main(["--out", str(out), *options]) == 0
  assert "train             3 clips       60 frames" in capsys.readouterr().out
  found, given = (
    packed("val", path=out),
    make_source("shapes", "val", json.loads(source.replace('"kind": "shapes", ', ""))),
  )
  spec = ClipSpec(frames=20, size=(16, 16))
  assert len(found) == 3 and found.label_names == given.label_names
  for i in range(3):
    assert np.array_equal(found[i]["frames"], load_clip(given[i], spec)) and found[i]["name"] == given[i]["name"]
  assert pack.main(["--out", str(out), "--source", "{"]) == 2
  assert "--source is no JSON" in capsys.readouterr().err
