"""The layout of the page, with Gradio. What happens in it stands in `tabs`."""

import functools
import types
from typing import Any, NamedTuple

from clip_jax import errors, versions
from clip_jax.app import bodies, limits, markup
from clip_jax.app import tabs as tabs_lib
from clip_jax.evals import prompts
from clip_jax.results import addresses

TITLE = "clip-jax"
# By itself: it asks for an old Pillow, and works with the one that is here.
_INSTALL = "pip install --no-deps gradio==6.31.0"
_LABELS = "cat\ndog\ncar"
_SECONDS = 3.0  # Between two looks at a run.
# Uploads are removed when they are so old, in seconds.
_UPLOADS_KEPT = 3600


def gradio() -> types.ModuleType:
  """Returns Gradio.

  Raises:
    UserError: it is not installed, or of another version than was tried.
  """
  install = f"{versions.install('app')} && {_INSTALL}"
  try:
    import gradio  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise errors.UserError(
      f"The page is made with Gradio, which does not import ({error}); "
      f"install it: {install}"
    ) from error
  found = tuple(map(int, gradio.__version__.split(".")[:2]))
  if not (6, 31) <= found < (7,):
    raise errors.UserError(
      f"The page needs Gradio 6.31 or a later 6, {gradio.__version__} is "
      f"installed: {install}"
    )
  return gradio


class Built(NamedTuple):
  """The page.

  Attributes:
    app: an ASGI application.
    events: the kinds of the inputs of its functions.
  """

  app: Any
  events: bodies.Events


def build(tabs: tabs_lib.Tabs, *, labels: str = _LABELS) -> Built:
  """Returns the page.

  Args:
    tabs: what stands behind it.
    labels: that are there at first.
  """
  gr = gradio()
  blocks = gr.Blocks(
    title=TITLE,
    analytics_enabled=False,
    delete_cache=(60, _UPLOADS_KEPT),
  )
  with blocks:
    gr.HTML(
      f'<div class="cj"><h1>{TITLE}</h1><p class="muted">'
      f"{markup.text(addresses.last(tabs.engine.clip.path))}</p></div>"
    )
    with gr.Tab("Classify") as classify_tab:
      _classify(gr, tabs, labels)
    with gr.Tab("Search") as search_tab:
      _search(gr, tabs)
    with gr.Tab("Compare") as compare_tab:
      _compare(gr, tabs)
    with gr.Tab("Runs") as runs_tab:
      others = [classify_tab, search_tab, compare_tab]
      _runs(gr, tabs, runs_tab, others)
  # Several may wait; the device takes one at a time.
  blocks.queue(api_open=False, max_size=64, default_concurrency_limit=4)
  events = {
    number: tuple(bodies.KINDS[type(x).__name__] for x in function.inputs)
    for number, function in blocks.fns.items()
  }
  return Built(_mounted(gr, blocks), events)


def _mounted(gr, blocks) -> Any:
  import fastapi  # pyright: ignore[reportMissingImports]

  fonts = ["system-ui", "sans-serif"]  # Those here: none is fetched.
  theme = gr.themes.Default(
    primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"]
  )
  return gr.mount_gradio_app(
    fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
    blocks,
    path="",
    footer_links=[],
    run_history=False,
    allowed_paths=[],
    show_error=False,
    max_file_size=limits.UPLOAD_BYTES,
    ssr_mode=False,
    enable_monitoring=False,
    pwa=False,
    mcp_server=False,
    theme=theme,
    css=markup.CSS,
  )


def _picture(gr, label: str) -> Any:
  """Returns a place for one picture; gives its path, and decodes nothing."""
  shown = gr.Image(
    label=label,
    type="filepath",
    sources=["upload", "clipboard"],
    buttons=[],
    height=260,
    elem_classes=["cj-picture"],
  )
  # Gradio's own would decode it by Pillow, with none of our limits.
  shown.preprocess = lambda payload: payload and payload.path
  return shown


def _leave_alone(inputs: list) -> None:
  """Has Gradio pass on what plain fields hold; `tabs` checks it."""
  for field in inputs:
    if type(field).__name__ in ("Textbox", "Slider", "Dropdown"):
      field.preprocess = lambda payload: payload


def _listen(events: list, function: Any, inputs: list, outputs: list) -> None:
  """Calls a function at each of some events; it is no public API."""
  _leave_alone(inputs)
  for event in events:
    event(
      function,
      inputs,
      outputs,
      api_visibility="private",
      show_progress="minimal",
      trigger_mode="always_last",
    )


def _classify(gr, tabs: tabs_lib.Tabs, labels: str) -> None:
  with gr.Row():
    with gr.Column():
      picture = _picture(gr, "Picture")
      typed = gr.Textbox(
        labels, label="Labels: one a line, or parted by commas", lines=3
      )
      templates = gr.Textbox(
        prompts.DEFAULT_TEMPLATE,
        label="Templates: one a line, {} stands for the label",
        lines=2,
        max_lines=10,
      )
      button = gr.Button("Classify", variant="primary")
    with gr.Column():
      answer = gr.HTML(tabs.classify(None, "", ""))
  events = [button.click, picture.change, typed.blur, templates.blur]
  _listen(events, tabs.classify, [picture, typed, templates], [answer])


def _search(gr, tabs: tabs_lib.Tabs) -> None:
  if tabs.index is None:
    gr.HTML(
      markup.note(
        "There is no index. Make one with `clip-jax embed MODEL --data DATA "
        "--out DIR`, and start the page with --index DIR."
      )
    )
    return
  with gr.Row():
    with gr.Column(scale=1):
      text = gr.Textbox(label="Text", placeholder="a photo of …", lines=1)
      picture = _picture(gr, "Or a picture, which goes before the text")
      count = gr.Slider(1, limits.RESULTS, 12, step=1, label="Results")
      button = gr.Button("Search", variant="primary")
    with gr.Column(scale=2):
      told = f"{len(tabs.index):,} pictures are in the index."
      answer = gr.HTML(markup.note(told))
  events = [button.click, text.submit, picture.upload, count.release]
  _listen(events, tabs.search, [text, picture, count], [answer])


def _compare(gr, tabs: tabs_lib.Tabs) -> None:
  with gr.Row():
    with gr.Column(scale=1):
      files = gr.File(
        label=f"Pictures, at most {limits.PICTURES}",
        file_count="multiple",
        file_types=["image"],
        height=160,
      )
      files.preprocess = lambda payload: payload and [x.path for x in payload]
      texts = gr.Textbox(label="Texts, one a line", lines=3)
      compare = gr.Button("Compare", variant="primary")
      text = gr.Textbox(label="Text for a heat map", lines=1)
      heat = gr.Button("Draw heat maps")
    with gr.Column(scale=2):
      answer = gr.HTML(markup.note("Add pictures and texts."))
      maps = gr.HTML()
  _listen([compare.click], tabs.compare, [files, texts], [answer])
  _listen([heat.click, text.submit], tabs.heat, [files, text], [maps])


def _runs(gr, tabs: tabs_lib.Tabs, tab: Any, others: list) -> None:
  if not tabs.runs:
    gr.HTML(
      markup.note(
        "There is no run. Start the page with --runs DIR: a workdir of "
        "`clip-jax train`, or the directory that several lie in."
      )
    )
    return
  names = list(tabs.runs)
  # Of a run that is gone `tabs` says so; Gradio would raise at each tick, since
  # a dropdown that is updated is made anew, and not as it is left alone here.
  run = gr.Dropdown(names, value=names[0], label="Run", allow_custom_value=True)
  shown = gr.HTML()
  seen = gr.State(())
  timer = gr.Timer(_SECONDS, active=False)

  def look(name, seen):
    there = tabs.find_runs()
    now = (sorted(there), name, *tabs.stamp(name))
    if now == seen:
      return gr.skip(), gr.skip(), gr.skip()
    return gr.update(choices=there), tabs.watch(name), now

  _leave_alone([run])
  for event in (run.change, tab.select, timer.tick):
    event(
      look,
      [run, seen],
      [run, shown, seen],
      api_visibility="private",
      show_progress="hidden",
    )
  # While another tab is open it costs nothing.
  for each in (tab, *others):
    each.select(
      functools.partial(gr.Timer, active=each is tab),
      None,
      [timer],
      api_visibility="private",
      show_progress="hidden",
    )
