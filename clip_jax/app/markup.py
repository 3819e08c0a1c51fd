"""The results of the tabs as HTML. Texts of users and of data are escaped."""

import html
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from clip_jax import search as search_lib
from clip_jax import terminal
from clip_jax.app import answering, classifying, comparing, drawn, watching
from clip_jax.results import picture as picture_lib

_MOST_BARS = 20  # Of further labels only the number is shown.
_MOST_CHARACTERS = 300
_MOST_OF_HEAD = 80  # A column of numbers is narrow.

CSS = """
.cj {font-size: 15px; line-height: 1.4}
.cj p {margin: 6px 0}
.cj .muted {opacity: .75; font-size: 13px}
.cj .error {border-left: 4px solid #cf4747; padding: 8px 12px;
  background: rgba(207, 71, 71, .1); border-radius: 4px;
  overflow-wrap: anywhere}
.cj .bar {margin: 8px 0}
.cj .bar .names {display: flex; justify-content: space-between; gap: 12px}
.cj .bar .name {overflow-wrap: anywhere; min-width: 0}
.cj .bar .value {font-variant-numeric: tabular-nums; white-space: nowrap}
.cj .track {height: 10px; border-radius: 5px; margin-top: 3px;
  background: rgba(127, 140, 155, .22); overflow: hidden}
.cj .fill {height: 100%; border-radius: 5px; background: #3f6fd1}
.cj .grid {display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(128px, 100%), 1fr))}
.cj .card {margin: 0; padding: 8px; border-radius: 8px; min-width: 0;
  border: 1px solid rgba(127, 140, 155, .35)}
.cj .card img, .cj .card .none {width: 100%; height: 150px; border-radius: 4px;
  object-fit: contain; margin: 0; background: rgba(127, 140, 155, .12)}
.cj .card .none {display: flex; align-items: center; justify-content: center;
  font-size: 13px; opacity: .75}
.cj figcaption {margin-top: 6px; font-size: 13px; overflow-wrap: anywhere}
.cj .score {font-weight: 600; font-variant-numeric: tabular-nums}
.cj .key {opacity: .7; font-size: 12px}
.cj .scroll {overflow-x: auto; max-width: 100%}
.cj .matrix {overflow: auto; max-width: 100%; max-height: 75vh}
.cj table {border-collapse: collapse; font-size: 14px; width: auto;
  margin: 6px 0}
.cj th, .cj td {padding: 6px 10px; text-align: left; vertical-align: middle;
  border: 1px solid rgba(127, 140, 155, .3); font-weight: 400;
  overflow-wrap: break-word; min-width: 80px; max-width: 240px}
.cj td.number {text-align: right; font-variant-numeric: tabular-nums}
.cj td.best {font-weight: 700}
.cj th[scope=row] {min-width: 110px}
.cj .card img + img {margin-top: 6px}
.cj th img {width: 72px; height: 72px; object-fit: contain; margin: 0}
.cj .wide {max-width: 100%; height: auto; margin: 4px 0; border-radius: 4px;
  background: white}
.cj .scroll > .wide {min-width: 620px}
.cj-picture img {width: 100%; height: 100%; object-fit: contain}
@media (max-width: 480px) {
  .tab-wrapper .tab-container button {padding: 0 8px; font-size: 14px}
  .cj .grid {gap: 8px}
  .cj .card img, .cj .card .none {height: 120px}
}
.cj h3 {font-size: 16px; font-weight: 600; margin: 14px 0 2px}
"""


def text(words: str, *, limit: int = _MOST_CHARACTERS) -> str:
  """Returns HTML that shows an untrusted text as one line.

  Markup is escaped; control characters and marks of the writing direction are
  left out. A text that is written from right to left does not change the order
  of what is beside it.
  """
  return f"<bdi>{_plain(words, limit)}</bdi>"


def _plain(words: str, limit: int = _MOST_CHARACTERS) -> str:
  """Returns the same without an element, for attributes."""
  return html.escape(terminal.printable(words, limit=limit), quote=True)


def _styled(*parts: str) -> str:
  """Returns the parts within an element to which `CSS` applies."""
  return f'<div class="cj">{"".join(parts)}</div>'


def note(words: str) -> str:
  """Returns a remark."""
  return _styled(f'<p class="muted">{text(words, limit=1000)}</p>')


def error(words: str) -> str:
  """Returns the message of an error."""
  return _styled(f'<p class="error" role="alert">{text(words, limit=1000)}</p>')


def _cut_texts(count: int) -> str:
  if not count:
    return ""
  are = "text is" if count == 1 else "texts are"
  return (
    f'<p class="muted">{count} {are} longer than the model reads; the rest was '
    "cut off.</p>"
  )


def bars(found: classifying.Classified) -> str:
  """Returns a bar for each of the most probable labels."""
  rows = []
  for name, probability in zip(
    found.names[:_MOST_BARS],
    found.probabilities[:_MOST_BARS].tolist(),
    strict=True,
  ):
    percent = html.escape(terminal.percent(probability))
    rows.append(
      f'<div class="bar"><div class="names"><span class="name">{text(name)}'
      f'</span><span class="value">{percent}</span></div><div class="track">'
      f'<div class="fill" style="width:{100 * probability:.2f}%"></div></div>'
      "</div>"
    )
  rest = len(found.names) - len(rows)
  more = f" {rest} less probable labels are not shown." if rest else ""
  how = (
    "They add up to 100 % over the labels."
    if found.kind == "softmax"
    else "Each label is judged by itself: none or several may fit."
  )
  said = f"{how} {found.prompts} texts compared.{more}"
  return _styled(*rows, f'<p class="muted">{said}</p>', _cut_texts(found.cut))


def hits(
  found: Sequence[search_lib.Hit], *, why_no_pictures: str, cut: int
) -> str:
  """Returns a card for each record that a search found.

  Args:
    found: the records.
    why_no_pictures: a text to show instead of pictures; "" to show pictures.
    cut: number of texts that the model did not read to their end.
  """
  cards = []
  for hit in found:
    shown = '<div class="none">no picture</div>'
    if not why_no_pictures:
      alt = _plain(hit.captions[0] if hit.captions else hit.key)
      shown = f'<img src="pictures/{hit.index}" loading="lazy" alt="{alt}">'
    captions = "<br>".join(text(caption) for caption in hit.captions[:3])
    key = text(terminal.escaped(hit.key, limit=120))
    cards.append(
      f'<figure class="card">{shown}<figcaption><span class="score">'
      f"{hit.score:.4f}</span><br>{captions}<br>"
      f'<span class="key">{key}</span></figcaption></figure>'
    )
  said = ""
  if why_no_pictures:
    said = f'<p class="muted">No pictures: {text(why_no_pictures)}</p>'
  grid = f'<div class="grid">{"".join(cards)}</div>'
  return _styled(_cut_texts(cut), said, grid)


def _picture(image: np.ndarray | Image.Image, alt: str) -> str:
  """Returns an embedded image; `alt` is escaped here."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  data = drawn.inline(drawn.encode(image))
  return f'<img src="{data}" alt="{_plain(alt)}">'


def matrix(found: comparing.Compared) -> str:
  """Returns a table of similarities, darker where they are greater."""
  low, high = float(found.similarity.min()), float(found.similarity.max())
  head = "".join(
    f'<th scope="col">{text(x, limit=_MOST_OF_HEAD)}</th>' for x in found.texts
  )
  rows = []
  for shown, row in zip(found.pictures, found.similarity, strict=True):
    cells = []
    for value in row.tolist():
      share = (value - low) / (high - low) if high > low else 0.0
      best = " best" if value == row.max() else ""
      cells.append(
        f'<td class="number{best}" style="background:rgba(63,111,209,'
        f'{0.6 * share:.3f})">{value:.3f}</td>'
      )
    name = text(terminal.escaped(shown.name, limit=60))
    rows.append(
      f'<tr><th scope="row">{_picture(shown.pixels, shown.name)}<br>{name}'
      f"</th>{''.join(cells)}</tr>"
    )
  table = f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
  said = "Cosine similarities; the best text of each picture is bold."
  return _styled(
    f'<div class="matrix">{table}</div><p class="muted">{said}</p>',
    _cut_texts(found.cut),
  )


def heat_maps(
  pictures: Sequence[answering.Picture],
  maps: Iterable[np.ndarray],
  words: str,
  *,
  cut: int,
) -> str:
  """Returns each picture with the similarity of its patches to a text.

  Args:
    pictures: what was compared.
    maps: similarities, (rows, cols) for each picture.
    words: the text.
    cut: number of texts that the model did not read to their end.
  """
  cards = []
  for shown, values in zip(pictures, maps, strict=True):
    rows, cols = values.shape
    name = text(terminal.escaped(shown.name, limit=60))
    alt = f"Heat map of {shown.name}"
    overlay = _picture(drawn.heat_map(shown.pixels, values), alt)
    cards.append(
      f'<figure class="card">{_picture(shown.pixels, shown.name)}{overlay}'
      f"<figcaption>{name}<br>from {values.min():.3f} (dark) to "
      f"{values.max():.3f} (bright), {rows} by {cols} patches</figcaption>"
      "</figure>"
    )
  return _styled(
    f"<p>Where “{text(words)}” fits best, in each picture by itself:</p>",
    _cut_texts(cut),
    f'<div class="grid">{"".join(cards)}</div>',
  )


def run(found: watching.Run) -> str:
  """Returns curves, evaluations and report of a run."""
  parts = [f"<p>{text(found.name)}: {_latest(found)}</p>"]
  if found.missing:
    parts.append(f'<p class="muted">{text(found.missing)}</p>')
  for title, remark, data in found.curves:
    parts.append(
      f'<h3>{_plain(title)}</h3><div class="scroll">{_wide(data, title)}</div>'
      f'<p class="muted">{_plain(remark)}</p>'
    )
  if found.results is not None:
    parts.append(_table(found.results))
  if found.report is not None:
    shown = _wide(found.report, "The report")
    parts.append(f'<h3>Report</h3><div class="scroll">{shown}</div>')
  return _styled(*parts)


def _latest(found: watching.Run) -> str:
  """Returns the step and metrics that a run logged last."""
  if found.step is None:
    return "nothing is logged yet."
  named = ("loss", "logit_scale", "images_per_second")
  values = [
    f"{name.replace('_', ' ')} {found.latest[name]:.4g}"
    for name in named
    if name in found.latest
  ]
  return ", ".join([f"step {found.step}", *values])


def _wide(data: bytes, alt: str) -> str:
  return f'<img class="wide" src="{drawn.inline(data)}" alt="{_plain(alt)}">'


def _table(table: picture_lib.Table) -> str:
  """Returns a table without the columns that are empty."""
  filled = [
    i for i in range(len(table.header)) if any(row[i] for row in table.rows)
  ]
  head = "".join(
    f'<th scope="col">{text(table.header[i])}</th>' for i in filled
  )
  rows = "".join(
    f"<tr>{''.join(f'<td>{text(row[i])}</td>' for i in filled)}</tr>"
    for row in table.rows
  )
  return (
    f'<h3>{_plain(table.title)}</h3><div class="scroll"><table><tr>{head}</tr>'
    f"{rows}</table></div>"
  )
