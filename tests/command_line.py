"""The command line inside a test's process."""

from vftok.cli import commands


def runner(capsys):
  """words -> what a command that must succeed prints."""

  def run(words):
    code = commands.main(words.split())
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out

  return run
