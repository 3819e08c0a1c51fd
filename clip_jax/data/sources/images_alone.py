"""Images without captions or classes, which are only searched.

Every image at any depth below a folder is a record of its own, without a text.
"""

import os

from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import folder_files, strings


class ImagesAlone:
  """The images below a folder, by their names relative to it."""

  class_names: tuple[str, ...] | None = None
  templates = None

  def __init__(
    self,
    root: str,
    names: list[str],
    *,
    account: account_lib.Account,
    within: str | None,
  ):
    self.account = account
    self._root = root
    self._within = within
    self.names = strings.Strings(names)
    self.fingerprint = folder_files.digest("images", self.names)

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    name = self.names[index]
    path = os.path.join(self._root, name)
    return record_lib.Record(
      image=folder_files.read_image(path, name, key=name, within=self._within),
      texts=(),
      key=name,
      path=path,
    )


def open_images(path: str, options: dict[str, str]) -> ImagesAlone:
  """Opens the images below the folder at `path`; options: `links`."""
  found = folder_files.list_files("images", path, options)
  for name in found.texts:
    found.account.left_out.add(name)
  return ImagesAlone(
    found.root, found.images, account=found.account, within=found.within
  )
