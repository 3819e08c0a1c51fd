"""Stand-ins for the libraries that track runs."""

import importlib.machinery
import sys
import types

import pytest


class Tracked:
  """Stands in for wandb and for trackio; notes each call.

  Attributes:
    calls: (name, arguments) of each call.
    fails: the names of those that raise an error.
    error: its kind.
    ends: called at the end of a run; None for nothing.
  """

  def __init__(self):
    self.calls = []
    self.fails = set()
    self.error: type[BaseException] = ConnectionError
    self.ends = None

  def called(self, name):
    """Returns the arguments of each call of that name."""
    return [arguments for called, arguments in self.calls if called == name]

  def call(self, name):
    def record(*positional, **named):
      self.calls.append((name, {"positional": positional, **named}))
      if name == "finish" and self.ends is not None:
        self.ends()
      if name in self.fails:
        raise self.error(f"no \x1b[31m{name} today\nor tomorrow")
      return types.SimpleNamespace(
        log=self.call("log"),
        finish=self.call("finish"),
        define_metric=self.call("define_metric"),
      )

    return record

  def module(self, name):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.Settings = lambda **settings: settings
    made.init = self.call("init")
    return made


def _stand_in():
  tracked = Tracked()
  with pytest.MonkeyPatch.context() as patch:
    for name in ("wandb", "trackio"):
      patch.setitem(sys.modules, name, tracked.module(name))
    for variable in ("WANDB_PROJECT", "WANDB_NAME"):
      patch.delenv(variable, raising=False)
    yield tracked


# In the place of both libraries: for a test, or for all of a module.
tracked = pytest.fixture(_stand_in)
all_tracked = pytest.fixture(scope="module")(_stand_in)
