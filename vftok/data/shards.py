"""TFDS sets made shard by shard, by any number of processes: no clip passes through one of them, and nothing twice.

A shard is an ArrayRecord file with a small JSON file of facts beside it, which appears last: a run that was stopped
goes on with the shards that have none. `finish` makes a set of them without touching what is in them.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vftok.runtime.files import whole_file
from vftok.runtime.optional import required
from vftok.runtime.words import is_whole

FACTS = "shards.json"  # of a set: {file: {"clips", "bytes"}}


def tfds():
  return required("tensorflow_datasets", "tensorflow-datasets", "writing a TFDS set")


def write_shard(path: Path, features, examples: Iterable[Mapping[str, Any]]) -> int:
  """Writes examples of `features` (a TFDS FeaturesDict) as an ArrayRecord file, whole or not at all.

  Returns their number, which may be 0, and writes it and the file's bytes beside it.
  """
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  count = 0
  with whole_file(path) as temporary:
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    for example in examples:
      data = features.serialize_example(example)
      # Fields come in any order otherwise, and a shard that is written again must be the same.
      writer.write(tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True))
      count += 1
    writer.close()
    size = temporary.stat().st_size
  with whole_file(_facts_file(path)) as temporary:
    temporary.write_text(json.dumps({"clips": count, "bytes": size}))
  return count


def shard_facts(path: Path) -> dict[str, int] | None:
  """{"clips", "bytes"} of a whole shard; None where it has to be written (again)."""
  try:
    facts = json.loads(_facts_file(path).read_text())
    return facts if is_whole(facts["clips"]) and path.stat().st_size == facts["bytes"] else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def write_set(directory: Path, splits: Mapping[str, Callable[[], Iterable]], features, finish: Callable) -> None:
  """Writes a set into `directory` with a shard a split; `finish` makes the set of {split: [shard]}."""
  work = directory / ".shards"
  work.mkdir()
  for split, examples in splits.items():
    write_shard(work / split, features, examples())
  finish({split: [work / split] for split in splits})
  shutil.rmtree(work)


def _facts_file(path: Path) -> Path:
  return path.with_name(f"{path.name}.json")


def finish(
  directory: Path, name: str, version: str, description: str, features, shards: Mapping[str, Sequence[Path]]
) -> dict[str, int]:
  """Makes the set directory/name/version of whole shards. Returns {split: clips}.

  Args:
    features: FeaturesDict of all examples.
    shards: {split: its shards in order}; those without clips are left out.

  Raises:
    ValueError: a split without clips, or a shard that is not whole.
  """
  target = directory / name / version
  target.mkdir(parents=True)
  template = tfds().core.ShardedFileTemplate(
    data_dir=target,
    dataset_name=name,
    filetype_suffix="array_record",
    template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
  )
  infos, facts_of = [], {}
  for split, paths in shards.items():
    found = [(path, shard_facts(path)) for path in paths]
    if lost := [path for path, facts in found if facts is None]:
      raise ValueError(f"{lost[0]} is not whole: run the same command again, which writes it.")
    used = [(path, facts) for path, facts in found if facts["clips"]]
    if not used:
      raise ValueError(f"split {split!r} has no clip that could be read: see the bad_clips.jsonl beside its shards.")
    for number, (path, facts) in enumerate(used):
      file = f"{name}-{split}.array_record-{number:05d}-of-{len(used):05d}"
      _link(path, target / file)
      facts_of[file] = facts
    infos.append(
      tfds().core.SplitInfo(
        name=split,
        shard_lengths=[facts["clips"] for _, facts in used],
        num_bytes=sum(facts["bytes"] for _, facts in used),
        filename_template=template.replace(split=split),
      )
    )
  tfds().folder_dataset.write_metadata(
    data_dir=target,
    features=features,
    split_infos=infos,
    version=version,
    filename_template=template,
    check_data=False,
    description=description,
  )
  (target / FACTS).write_text(json.dumps(facts_of) + "\n")
  return {info.name: sum(info.shard_lengths) for info in infos}


def _link(path: Path, target: Path) -> None:
  try:
    target.hardlink_to(path)
  except OSError:  # a bucket's file system has no hard links
    shutil.copyfile(path, target)


def check(files: Sequence[str | os.PathLike]) -> None:
  """Raises ValueError or FileNotFoundError naming the first shard that is missing, empty, cut short or too long.

  By the sizes that were written beside them; of a set of others', by there being something.
  """
  known: dict[Path, dict] = {}
  for path in map(Path, files):
    if path.parent not in known:
      known[path.parent] = _facts_of(path.parent)
  with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket answers slowly, and to many at once
    sizes = list(pool.map(_size, files))
  for path, size in zip(map(Path, files), sizes, strict=True):
    if size is None:
      raise FileNotFoundError(f"{path} is missing: get a whole copy of the set, or write it again.")
    wanted = known[path.parent].get(path.name, {}).get("bytes")
    if size == 0 or size != (wanted or size):
      expected = f"{wanted:,} as were written" if wanted else "some"
      raise ValueError(
        f"{path} has {size:,} bytes, expected {expected}: get a whole copy of it, or write the set again."
      )


def _size(path) -> int | None:
  try:
    return os.stat(path).st_size
  except OSError:
    return None


def _facts_of(directory: Path) -> dict[str, dict]:
  path = directory / FACTS
  try:
    facts = json.loads(path.read_text())
    if all(is_whole(of_file["bytes"]) for of_file in facts.values()):
      return facts
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    pass
  raise ValueError(f"{path} is damaged, expected the bytes of every shard in JSON: get a whole copy of the set.")
