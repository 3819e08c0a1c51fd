"""TensorBoard's event files: tensorboardX, imported without PyTorch.

Where PyTorch is installed tensorboardX imports it, for arrays that we do not
write: seconds, and hundreds of megabytes. It does without where it is missing.
"""

import sys

_HIDDEN = {"torch", "comet_ml"} - sys.modules.keys()

for _name in _HIDDEN:
  sys.modules[_name] = None  # pyright: ignore  # To import it is an ImportError.
try:
  from tensorboardX.event_file_writer import EventsWriter as EventsWriter
  from tensorboardX.proto import event_pb2
  from tensorboardX.summary import scalar as scalar
finally:
  for _name in _HIDDEN:
    del sys.modules[_name]

Event = event_pb2.Event  # pyright: ignore  # Made when imported.
SessionLog = event_pb2.SessionLog  # pyright: ignore
