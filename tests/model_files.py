"""What tests of bad checkpoints share."""

import json
import re

from safetensors.numpy import save_file

import vftok


def sentence(error) -> str:
  """The message, if it is one sentence: one line, ends with a full stop, no other full stop inside."""
  text = str(error)
  assert "\n" not in text and text.endswith(".") and len(text) < 500, text
  assert ". " not in re.sub(r"/\S+", "PATH", text), text
  return text


def write(directory, config, weights):
  directory.mkdir()
  save_file(weights, directory / "model.safetensors")
  (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
  return directory


def load_with(model, directory, config):
  """Loads `config` with the weights of `model`."""
  directory.mkdir(exist_ok=True)
  link = directory / "model.safetensors"
  if not link.exists():
    link.symlink_to(model / "model.safetensors")
  (directory / "config.json").write_text(json.dumps(config))
  return vftok.Tokenizer.load(directory)
