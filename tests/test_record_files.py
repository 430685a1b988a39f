"""Sets of more files than a process may open."""

import pickle
import resource
import threading

import pytest

from vftok.data.record_files import RecordFiles


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """60 files of two records each, named after their place."""
  from array_record.python.array_record_module import ArrayRecordWriter

  root, paths = tmp_path_factory.mktemp("files"), []
  for i in range(60):
    writer = ArrayRecordWriter(str(root / f"{i}.array_record"), "group_size:1")
    for j in range(2):
      writer.write(b"%d" % (2 * i + j))
    writer.close()
    paths.append(str(root / f"{i}.array_record"))
  return paths


def test_more_files_than_may_be_open(files, monkeypatch):
  _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  records = RecordFiles([(path, 0, 2) for path in files])
  monkeypatch.setattr(resource, "getrlimit", lambda _: (40, hard))
  few = RecordFiles([(path, 0, 2) for path in files])
  for found in (records, few, pickle.loads(pickle.dumps(few))):
    assert [int(found[i]) for i in range(len(found))] == list(range(120))
  assert len(few._open) == 10 and len(records._open) == 60


def test_parts_of_files(files):
  records = RecordFiles([(files[3], 1, 1), (files[9], 0, 2)])
  assert [records[i] for i in range(3)] == [b"7", b"18", b"19"] and records.path(1) == files[9]
  with pytest.raises(IndexError):
    records[3]
  with pytest.raises(IndexError):
    records[-1]
  assert len(RecordFiles([])) == 0


def test_threads_share_few_readers(files):
  records, wrong = RecordFiles([(path, 0, 2) for path in files], most_open=2), []

  def read(seed: int) -> None:
    wrong.extend(i for i in range(seed, 120, 7) if int(records[i]) != i)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(7)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
