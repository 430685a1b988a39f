"""PyTorch's file format written by hand, without torch: a zip of a pickle and of the bytes of its storages."""

import io
import struct
import zipfile

import numpy as np

STORAGES = {
  "float64": "Double",
  "float32": "Float",
  "float16": "Half",
  "bfloat16": "BFloat16",
  "int64": "Long",
  "int32": "Int",
  "uint8": "Byte",
  "bool": "Bool",
}


class View:
  """A tensor over a storage of its own or of another; offset and strides in elements."""

  def __init__(self, array, key, shape=None, strides=None, offset=0):
    self.array, self.key = np.array(array, order="C"), key
    self.shape = self.array.shape if shape is None else shape
    steps = [stride // self.array.itemsize for stride in self.array.strides]
    self.strides, self.offset = tuple(steps) if strides is None else strides, offset


def opcodes(value, storages):
  """The pickle of plain data and arrays, protocol 2; arrays become storages."""
  if value is None or isinstance(value, bool):
    return {None: b"N", True: b"\x88", False: b"\x89"}[value]
  if isinstance(value, int):
    return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x08" + struct.pack("<q", value)
  if isinstance(value, float):
    return b"G" + struct.pack(">d", value)
  if isinstance(value, str):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data
  if isinstance(value, (tuple, list)):
    inside = b"".join(opcodes(inner, storages) for inner in value)
    return b"(" + inside + b"t" if isinstance(value, tuple) else b"](" + inside + b"e"
  if isinstance(value, dict):
    return b"}(" + b"".join(opcodes(k, storages) + opcodes(v, storages) for k, v in value.items()) + b"u"
  view = value if isinstance(value, View) else View(value, str(len(storages)))
  storages[view.key] = view.array
  store = f"ctorch\n{STORAGES[str(view.array.dtype)]}Storage\n".encode()
  kind = b"(" + opcodes("storage", {}) + store + opcodes(view.key, {}) + opcodes("cpu", {})
  kind += opcodes(view.array.size, {}) + b"tQ"
  rest = b"".join(opcodes(part, {}) for part in (view.offset, tuple(view.shape), tuple(view.strides), False))
  ordered = b"ccollections\nOrderedDict\n)R"
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + kind + rest + ordered + b"tR"


def write_torch(path, content=None, *, data=None, storages=None, compression=zipfile.ZIP_STORED, byteorder=b"little"):
  """Writes `content` as `torch.save` does; data: a pickle in its place. Returns the path."""
  storages = {} if storages is None else dict(storages)
  if data is None:
    data = b"\x80\x02" + opcodes(content, storages) + b"."
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", compression) as file:
    file.writestr("archive/data.pkl", data)
    file.writestr("archive/byteorder", byteorder)
    for key, array in storages.items():
      file.writestr(f"archive/data/{key}", array.tobytes())
    file.writestr("archive/version", b"3\n")
  path.write_bytes(buffer.getvalue())
  return path
