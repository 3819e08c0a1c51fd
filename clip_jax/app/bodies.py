"""What the page asks Gradio for, written anew from what came.

Gradio finds a wrong type by an error deep inside, whose traceback it writes to
the server's log. So a request is taken apart here: what the page itself could
have sent is put into a new one, and any other is refused by one sentence.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax import errors

# The kinds of inputs by Gradio's names of its components.
KINDS = {
  "Textbox": "text",
  "Dropdown": "text",
  "Slider": "number",
  "Image": "picture",
  "File": "pictures",
  "State": "nothing",  # It stays on the server.
}
JOIN, CANCEL, RESET = "queue/join", "cancel", "reset"
_NAME = re.compile(r"[\w-]{1,64}", re.ASCII)
_LARGEST = 2**53  # What a browser's numbers hold exactly.
_META = {"_type": "gradio.FileData"}

# The kinds of each function's inputs, by its number.
Events = Mapping[int, tuple[str, ...]]


def rewritten(
  value: dict[str, Any],
  route: str,
  *,
  events: Events,
  check_upload: Callable[[str], None],
) -> dict[str, Any]:
  """Returns the request that takes the place of `value`.

  Args:
    value: the body as it came.
    route: one of `JOIN`, `CANCEL` and `RESET`.
    events: the functions of the page.
    check_upload: raises unless a path is one of an upload.

  Raises:
    UserError: the page sends no such request.
  """
  if route == RESET:
    return {"event_id": _name(value, "event_id")}
  session = _name(value, "session_hash")
  number = value.get("fn_index")
  if type(number) is not int or number not in events:
    raise errors.UserError("fn_index is none of the page's functions.")
  known = {"session_hash": session, "fn_index": number}
  if route == CANCEL:
    return {**known, "event_id": _name(value, "event_id")}
  trigger = value.get("trigger_id")
  if trigger is not None and not _is_number(trigger, int):
    raise errors.UserError("trigger_id is no number.")
  data, kinds = value.get("data"), events[number]
  if not isinstance(data, list) or len(data) != len(kinds):
    raise errors.UserError(f"data is no list of {len(kinds)} values.")
  given = [
    _input(each, kind, f"data[{i}]", check_upload)
    for i, (each, kind) in enumerate(zip(data, kinds, strict=True))
  ]
  return {**known, "trigger_id": trigger, "data": given}


def _name(value: dict[str, Any], field: str) -> str:
  found = value.get(field)
  if not isinstance(found, str) or not _NAME.fullmatch(found):
    raise errors.UserError(f"{field} is no name that the page gives.")
  return found


def _is_number(value: Any, types: Any) -> bool:
  is_one = isinstance(value, types) and not isinstance(value, bool)
  return is_one and abs(value) <= _LARGEST


def _input(value: Any, kind: str, where: str, check_upload) -> Any:
  if value is None or kind == "nothing":
    return None
  if kind == "pictures":
    if not isinstance(value, list):
      raise errors.UserError(f"{where} is no list of pictures.")
    return [_picture(each, where, check_upload) for each in value]
  if kind == "picture":
    return _picture(value, where, check_upload)
  is_text = isinstance(value, str)
  if not (is_text if kind == "text" else _is_number(value, int | float)):
    raise errors.UserError(f"{where} is no {kind}.")
  return value


def _picture(value: Any, where: str, check_upload) -> dict[str, Any]:
  """Returns the reference to an uploaded picture, by its path alone."""
  path = value.get("path") if isinstance(value, dict) else None
  if not isinstance(path, str):
    raise errors.UserError(f"{where} is no picture that was uploaded.")
  check_upload(path)
  return {"path": path, "meta": _META}
