"""The examples of a run as records: what a mixture gives, in its order."""

from clip_jax import preprocess
from clip_jax.data import mixture as mixture_lib
from clip_jax.data import order, shares
from clip_jax.data import record as record_lib
from clip_jax.data.sources import views


def epoch_ends(mixture: mixture_lib.Mixture) -> list[int]:
  """Returns after how many examples each source has given all its records."""
  weights = tuple(part.weight for part in mixture.parts)
  return [
    shares.end(weights, number, len(part.source))
    for number, part in enumerate(mixture.parts)
  ]


class Examples(views.View):
  """The first examples of a run, as the records of a source.

  A record that cannot be read, or whose image does not begin as one, is
  replaced by another of the same source, as in training; images are not
  decoded for it.
  """

  def __init__(
    self,
    mixture: mixture_lib.Mixture,
    number: int,
    *,
    seed: int,
    limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
  ):
    """Stores the arguments.

    Args:
      mixture: the sources.
      number: of examples.
      seed: of the run.
      limits: what is too large to be used.
    """
    super().__init__(mixture, "examples", seed, number, limits.max_pixels)
    if self.account is not None:  # As much is lost of these as of all.
      self.account = self.account.of_part(number / len(mixture))
    self._number, self._limits = number, limits
    self._slots = order.of(mixture, seed)

  def __len__(self) -> int:
    return self._number

  def __getitem__(self, index: int) -> record_lib.Record:
    return self.with_replaced(index)[0]

  def with_replaced(
    self, index: int
  ) -> tuple[record_lib.Record, list[record_lib.BadRecord]]:
    """Returns an example, and the bad records in whose place it stands."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    return order.first_good(self._slots, index, self._read)

  def _read(self, slot: int) -> record_lib.Record:
    record = self._source[slot]
    try:
      preprocess.check_header(record.image, limits=self._limits)
    except preprocess.ImageError as error:
      raise record_lib.BadRecord(error.reason, record.key) from error
    return record
