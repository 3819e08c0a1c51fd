"""Which column of a table of text holds the images, or the captions."""

from clip_jax import errors, terminal


def find(
  columns: list[str],
  wanted: str | None,
  usual: tuple[str, ...],
  option: str,
  path: str,
  notes: list[str],
) -> int:
  """Returns the place of a column; `notes` grow where others might be meant.

  Args:
    columns: of the table, in order.
    wanted: the name that a user gave; None for the usual ones.
    usual: names that are known, the likeliest first.
    option: of the address, that names the column.
    path: of the table, for messages.
    notes: for the account.

  Raises:
    UserError: there is no such column, or more than one.
  """
  folded = [column.casefold() for column in columns]
  names = usual if wanted is None else (wanted,)
  for name in names:
    if columns.count(name) > 1:
      raise errors.UserError(
        f"csv:{path} has {columns.count(name)} columns that are named "
        f"{name!r}; rename all but the right one in its first line."
      )
    if name in columns:
      found = columns.index(name)
    elif folded.count(name.casefold()) == 1:
      found = folded.index(name.casefold())
    else:
      continue
    others = [
      column
      for place, column in enumerate(columns)
      if wanted is None and place != found and folded[place] in usual
    ]
    if others:
      notes.append(
        f"The {option}s are read from the column {columns[found]!r}, not from "
        f"{terminal.quoted(others)}; choose with ?{option}=COLUMN."
      )
    return found
  parts = [] if wanted is None else wanted.split(",")
  if option == "caption" and len(parts) > 1 and set(parts) <= {*columns}:
    addresses = ", ".join(f'"csv:{path}?caption={x}": 1' for x in parts)
    raise errors.UserError(
      f"csv:{path}: captions are read from one column of a table of text, got "
      f"caption={wanted}. Train on both as two sources, data.train='"
      f"{{{addresses}}}', or write the table as Parquet, of which several "
      "columns are read."
    )
  looked_for = " or ".join(map(repr, names))
  classes = ", or one of classes with ?label=COLUMN"
  raise errors.UserError(
    f"csv:{path} has no column {looked_for}; its columns are"
    f" {terminal.quoted(columns)}. Name the right one with ?{option}=COLUMN"
    f"{classes if option == 'caption' else ''} (and sep= if the separator is "
    "another)."
  )
