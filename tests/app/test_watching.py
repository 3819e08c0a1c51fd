"""Runs as they are watched, and the start of the server."""

import dataclasses
import json
import socket

import pytest
from PIL import Image

import bucket_stand_in
from clip_jax import errors
from clip_jax.app import bucket_runs, markup, page, server, tabs, watching
from clip_jax.buckets import attempts
from clip_jax.results import drawing, picture


@pytest.fixture
def workdir(tmp_path):
  path = tmp_path / "runs" / "first <b>"
  path.mkdir(parents=True)
  lines = [
    {"step": s, "loss": 3.0 / s, "logit_scale": 10 + s, "eval/x/top1": 0.1 * s}
    for s in (1, 2, 3)
  ]
  text = "\n".join(map(json.dumps, lines)) + '\n{"step": 4, "lo'
  (path / "metrics.jsonl").write_text(text)
  return path


def test_runs_are_found_here_or_right_below(workdir, tmp_path):
  (tmp_path / "runs" / "empty").mkdir()
  assert watching.find(workdir) == {"first <b>": workdir}
  assert watching.find(workdir.parent) == {"first <b>": workdir}
  for wrong in (tmp_path, tmp_path / "none", workdir / "metrics.jsonl"):
    with pytest.raises(errors.UserError, match="director"):
      watching.find(wrong)


def test_a_run_is_shown_as_it_stands(workdir, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    drawing, "draw", lambda figure: drawn.append(figure) or b"\x89PNG"
  )
  found = watching.look(workdir)
  assert (found.step, found.report, found.missing) == (3, None, "")
  assert found.latest["loss"] == 1.0
  training, evaluations = drawn
  assert [panel.title for panel in training.panels] == ["loss", "logit scale"]
  assert training.panels[0].marks[0].y == [3.0, 1.5, 1.0]
  assert evaluations.panels[0].marks[0].x == [1, 2, 3]
  text = markup.run(found)
  assert "<b>" not in text and "step 3, loss 1" in text
  (workdir / "metrics.jsonl").unlink()
  assert "nothing is logged yet" in markup.run(watching.look(workdir))


def test_a_table_has_no_empty_columns():
  table = picture.Table(
    name="results",
    title="Results",
    note="",
    header=["model", "interval", "top-1", "protocol"],
    rows=[["a", "", "0.5", ""], ["b", "", "", "<b>"]],
  )
  run = watching.Run("x", None, {}, [], table, None, "")
  html = markup.run(run)
  assert html.count("<th") == 3 and html.count("<td") == 6
  assert "interval" not in html and "protocol" in html and "<b>" not in html
  bare = dataclasses.replace(run, results=dataclasses.replace(table, rows=[]))
  assert "<td" not in markup.run(bare)


def test_numbers_that_no_axis_holds_are_left_out(workdir):
  with (workdir / "metrics.jsonl").open("w") as file:
    for step, loss in enumerate((1e300, 1e308, "<b>", -1e308, True, -1e300)):
      file.write(json.dumps({"step": step, "loss": loss}) + "\n")
  found = watching.look(workdir)
  assert found.latest == {"loss": -1e300} and found.step == 5
  assert found.missing == "" and len(found.curves) == 1


def test_a_stamp_changes_with_the_metrics_and_the_report(workdir):
  seen = [watching.stamp(workdir)]
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write("x\n")
  seen.append(watching.stamp(workdir))
  Image.new("RGB", (20, 30)).save(workdir / "report.png")
  seen.append(watching.stamp(workdir))
  assert len(set(seen)) == 3
  assert watching.stamp(workdir) == seen[-1]


def test_only_a_png_in_the_workdir_is_a_report(workdir, tmp_path, monkeypatch):
  monkeypatch.setattr(drawing, "draw", lambda figure: b"\x89PNG")
  report = workdir / "report.png"
  Image.new("RGB", (20, 30)).save(tmp_path / "other.png")
  report.symlink_to(tmp_path / "other.png")
  assert watching.look(workdir).report is None
  report.unlink()
  report.write_text("<script>")
  assert watching.look(workdir).report is None
  report.write_bytes((tmp_path / "other.png").read_bytes())
  assert watching.look(workdir).report == report.read_bytes()


def test_without_matplotlib_the_page_says_so(workdir, monkeypatch):
  def draw(figure):
    raise errors.UserError("install it")

  monkeypatch.setattr(drawing, "draw", draw)
  found = watching.look(workdir)
  assert found.missing == "install it" and found.latest["loss"] == 1.0


def test_tabs_know_runs_by_their_names_only(engine, workdir, monkeypatch):
  monkeypatch.setattr(drawing, "draw", lambda figure: b"\x89PNG")
  page_tabs = tabs.Tabs(engine, uploads="/nowhere", runs=watching.find(workdir))
  assert "step 3" in page_tabs.watch("first <b>")
  assert page_tabs.stamp("first <b>") == watching.stamp(workdir)
  for name in ("../first <b>", str(workdir), "", "..", None, 3):
    assert "no such run" in page_tabs.watch(name)


def test_runs_that_begin_later_are_found(engine, workdir, monkeypatch):
  seconds = [100.0]
  monkeypatch.setattr(tabs.time, "monotonic", lambda: seconds[0])
  asked = []

  def find():
    asked.append(1)
    return watching.find(workdir.parent)

  page_tabs = tabs.Tabs(engine, uploads="/nowhere", runs=find(), find=find)
  later = workdir.parent / "later"
  later.mkdir()
  (later / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
  seconds[0] += tabs._SECONDS / 2
  assert page_tabs.find_runs() == ["first <b>"] and len(asked) == 1
  seconds[0] += tabs._SECONDS
  for _ in range(3):
    assert set(page_tabs.find_runs()) == {"first <b>", "later"}
  assert len(asked) == 2
  for run in (workdir, later):
    (run / "metrics.jsonl").unlink()
  seconds[0] += tabs._SECONDS
  assert len(page_tabs.find_runs()) == 2  # As it was, until one is there.


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_runs_in_a_bucket_are_watched_at_a_calm_rate(
  scheme, engine, workdir, monkeypatch, tmp_path
):
  seconds = [100.0]
  monkeypatch.setattr(drawing, "draw", lambda figure: b"\x89PNG")
  # Of both: `tabs` looks every ten seconds, and asks the bucket less often.
  monkeypatch.setattr(tabs.time, "monotonic", lambda: seconds[0])
  monkeypatch.setattr(
    attempts, "_in_time", lambda ask, *_: ask()
  )  # It has a clock of its own.
  with bucket_stand_in.reached(monkeypatch, tmp_path / "cache") as store:
    monkeypatch.setattr(attempts, "ATTEMPTS", 2)
    data = (workdir / "metrics.jsonl").read_bytes()
    store.put("data-1", "runs/a b/metrics.jsonl", data)
    store.put("data-1", "runs/a b/checkpoints/3/meta", b"x")
    store.put("data-1", "runs/other/a.txt", b"x")
    find = watching.finder(f"{scheme}://data-1/runs")
    page_tabs = tabs.Tabs(engine, uploads="/nowhere", runs=find(), find=find)
    assert "step 3, loss 1" in page_tabs.watch("a b")
    before = page_tabs.stamp("a b")
    data = data.rpartition(b"\n")[0] + b'\n{"step": 4, "loss": 0.5}\n'
    store.put("data-1", "runs/a b/metrics.jsonl", data)
    store.put("data-1", "runs/new/metrics.jsonl", data)
    store.requests.clear()
    seconds[0] += 15
    assert page_tabs.find_runs() == ["a b"]
    assert not store.requests and page_tabs.stamp("a b") == before
    seconds[0] += 20
    assert sorted(page_tabs.find_runs()) == ["a b", "new"]
    assert page_tabs.stamp("a b") != before
    assert "step 4, loss 0.5" in page_tabs.watch("a b")
    assert not [x for x in store.requests if "meta" in x and "files" not in x]
    store.refuse = 503
    seconds[0] += 40
    assert len(page_tabs.find_runs()) == 2  # As it was.
    store.refuse = None
    assert bucket_runs.is_run(f"{scheme}://data-1/runs/new")
    assert not bucket_runs.is_run(f"{scheme}://data-1/runs/other")
    assert list(watching.finder(f"{scheme}://data-1/runs/new")()) == ["new"]
    for wrong in ("data-1/runs/other", "none/runs"):
      with pytest.raises(errors.UserError, match=r"holds none|no bucket"):
        watching.finder(f"{scheme}://{wrong}")()


def test_without_gradio_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "gradio", None)
  with pytest.raises(errors.UserError, match=r"jax-clip\[app\]"):
    page.gradio()
  with pytest.raises(errors.UserError, match=r"jax-clip\[app\]"):
    server.serve(lambda: None, port=0)


def test_an_address_that_cannot_be_listened_at_is_refused_first():
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(errors.UserError, match="is empty"):
      server.serve(lambda: None, host="", port=port)
    for host in ("127.0.0.1", "203.0.113.7", "no such host", "\udc80", "::g"):
      with pytest.raises(errors.UserError, match="cannot listen"):
        server.serve(lambda: None, host=host, port=port)
