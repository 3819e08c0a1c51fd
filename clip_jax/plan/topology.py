"""The devices that a run is planned for: local ones, or described ones."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator

import jax
from jax.experimental import topologies

from clip_jax import errors, sharding, versions
from clip_jax.plan import environment, hardware

LOCAL = "local"

_NAME = re.compile(r"(?P<chip>[\w-]+):(?P<shape>\d{1,9}(?:x\d{1,9}){1,9})")
# Google's names of machine types are accepted too.
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v6": "v6e"}
# A side of the network that closes to a ring: 16 chips in a v5e's or v6e's pod
# of 16x16; any multiple of 4 in a v4's or v5p's cubes (docs.cloud.google.com/
# tpu/docs/v5e, v5p).
_RING_2D = 16
# The compiler needs the chips of one host: at most 2 x 2.
_HOST_SIDE = 2
# Both cores of a v4 as one device.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
# Characters of a wrong name that a message shows.
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices and how they are connected.

  Attributes:
    name: the topology's name, as it was given.
    devices: JAX's devices; unless they are local, programs can be compiled for
      them but not run.
    chip: figures of a chip; None for hardware that is not listed.
    shape: number of chips along each axis of the network; () if unknown.
    wrap: whether each axis is a ring.
  """

  name: str
  devices: tuple[sharding.Device, ...]
  chip: hardware.Chip | None
  shape: tuple[int, ...] = ()
  wrap: tuple[bool, ...] = ()

  @property
  def is_local(self) -> bool:
    """Whether the devices are of this machine, so that programs can run."""
    return self.name == LOCAL


def make_topology(name: str) -> Topology:
  """Returns the topology of a name.

  Args:
    name: "local", or a chip and the shape of a slice, such as "v5e:16x16".

  Raises:
    UserError: the name is not valid, there is no such slice, or libtpu, which
      compiles for TPUs, is missing.
  """
  if name == LOCAL:
    devices = tuple(jax.devices())
    return Topology(name, devices, hardware.chip_of(devices[0].device_kind))
  chip, shape = parse(name)
  wrap = rings(chip, shape)
  return Topology(name, _described(name, chip, shape, wrap), chip, shape, wrap)


def parse(name: str) -> tuple[hardware.Chip, tuple[int, ...]]:
  """Returns the chip and the shape of a topology's name.

  Raises:
    UserError: the name is not valid, or there is no such slice.
  """
  found = _NAME.fullmatch(name.strip().lower())
  if not found:
    raise errors.UserError(
      f"Unknown topology {name[:_SHOWN]!r}; give 'local', or a chip and "
      f"the shape of a slice, such as v5e:16x16 or v4:4x4x8. Chips: "
      f"{', '.join(hardware.CHIPS)}."
    )
  kind = _ALIASES.get(found["chip"], found["chip"])
  if kind not in hardware.CHIPS:
    raise errors.unknown("chip", found["chip"], hardware.CHIPS)
  chip = hardware.CHIPS[kind]
  shape = tuple(int(side) for side in found["shape"].split("x"))
  if len(shape) != chip.torus_axes:
    example = "16x16" if chip.torus_axes == 2 else "4x4x4"
    raise errors.UserError(
      f"Topology {name!r}: slices of {chip.name} have {chip.torus_axes} sides, "
      f"such as {chip.name}:{example}."
    )
  if not chip.has_slice(shape):
    raise errors.UserError(
      f"There is no slice {name}; of {chip.name} there are "
      f"{chip.slices_in_words()}."
    )
  return chip, shape


def rings(chip: hardware.Chip, shape: tuple[int, ...]) -> tuple[bool, ...]:
  """Returns, for each axis of a slice, whether it is a ring."""
  if chip.torus_axes == 2:
    return tuple(side == _RING_2D for side in shape)
  closed = all(side % hardware.CUBE == 0 for side in shape)
  return (closed,) * len(shape)


def _described(name, chip, shape, wrap) -> tuple[sharding.Device, ...]:
  library = os.environ.get("TPU_LIBRARY_PATH", "")
  if not (os.path.isfile(library) or importlib.util.find_spec("libtpu")):
    raise errors.UserError(
      f"Planning for {name} needs libtpu, which compiles for TPUs without "
      f"having one: {versions.install('plan')}. --topology local plans for the "
      "devices here."
    )
  host = [min(side, _HOST_SIDE) for side in shape[:2]]
  try:
    with _environment():
      described = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{chip.name}:{'x'.join(map(str, shape))}",
        wrap=[*wrap, False][:3],
        chips_per_host_bounds=[*host, 1],
        **_OPTIONS.get(chip.name, {}),
      )
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f"There is no slice {name}: {errors.first_line(error)}"
    ) from None
  return tuple(described.devices)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
  """Sets the variables that libtpu reads while it is loaded, if unset."""
  wanted = environment.WITHOUT_TPU
  added = {k: v for k, v in wanted.items() if k not in os.environ}
  os.environ.update(added)
  try:
    yield
  finally:
    for name in added:
      del os.environ[name]
