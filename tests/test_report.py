import dataclasses
import types

import numpy as np
import pytest
from PIL import Image

from clip_jax import errors, preprocess, report, terminal
from clip_jax.data import builtin, sources
from clip_jax.evals import embedding_model, probabilities
from clip_jax.report import canvas, nearest


def picture(shade, size=(8, 8)):
  return Image.new("RGB", size, (shade, 0, 0))


def apart(i):
  return picture(20 * int(i))


def make_rows(count=2, text="a photo of a cat"):
  found = [report.Found(picture(40 * i), 0.9 - i / 10, i < 3) for i in range(5)]
  guesses = [report.Guess(text, 0.5**i, i == 1) for i in range(5)]
  return report.Rows([(text, found)] * count, [(picture(200), guesses)] * count)


@pytest.mark.parametrize(
  "headlines",
  [(), [report.Headline("top-1", "97 %", "95 %: 96 to 98")] * 20],
)
@pytest.mark.parametrize(
  "text", ["a cat", "word " * 500, "x" * 5000, "\x1b[31m\u202e", "日本語", ""]
)
def test_any_text_fits_on_the_page(text, headlines):
  image = report.draw(
    make_rows(text=text), title=text or "title", headlines=headlines
  )
  assert image.width == 1120
  pixels = np.asarray(image)
  # The margins stay white: nothing runs over the edge.
  assert pixels[:, :40].min() == 255
  assert pixels[:, -40:].min() == 255
  assert pixels[-30:].min() == 255
  assert pixels.min() == 0


def test_the_page_shows_every_image_with_its_colours():
  pixels = np.asarray(report.draw(make_rows(count=1), title="t"))
  for shade in (40, 80, 120, 160, 200):
    same = np.all(pixels == (shade, 0, 0), axis=-1).sum()
    assert same == 128 * 128
  right = np.all(pixels == (0x16, 0x97, 0x5A), axis=-1)
  wrong = np.all(pixels == (0xCF, 0x47, 0x47), axis=-1)
  assert right.sum() > 1000 and wrong.sum() > 1000


@pytest.mark.parametrize(
  "probability", [1.0, 0.994, 0.12, 0.011, 0.00088, 8.8e-6, 1e-6, 1e-9, 0.0]
)
def test_a_probability_is_written_beside_its_bar(probability, monkeypatch):
  written, bars = {}, []
  draw_text, draw_bar = canvas.Canvas.text, canvas.Canvas._bar

  def text(self, x, y, text, **look):
    written[text] = x - canvas._length(text, look["size"])
    draw_text(self, x, y, text, **look)

  def bar(self, ends, *look):
    bars.append(ends)
    draw_bar(self, ends, *look)

  monkeypatch.setattr(canvas.Canvas, "text", text)
  monkeypatch.setattr(canvas.Canvas, "_bar", bar)
  guess = report.Guess("a cat", probability, None)
  report.draw(report.Rows([], [(picture(200), [guess])]), title="t")
  left = written[terminal.percent(probability)]
  assert bars and max(end for _, end in bars) + 4 <= left


@pytest.mark.parametrize("rows", [report.Rows([], []), make_rows(count=1)])
def test_a_sheet_may_have_few_rows_or_none(rows):
  assert report.draw(rows, title="t").height > 90


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (300, 100), (1, 500)])
def test_images_of_any_shape_keep_their_proportions_in_the_tile(size):
  tile = canvas.enlarge(picture(90, size), 64)
  assert tile.size == (64, 64)
  ours = np.all(np.asarray(tile) == (90, 0, 0), axis=-1)
  height, width = ours.any(axis=1).sum(), ours.any(axis=0).sum()
  scale = 64 / max(size)
  assert (width, height) == tuple(max(1, round(s * scale)) for s in size)


def test_small_images_are_enlarged_without_a_blur():
  checkers = np.indices((4, 4)).sum(axis=0) % 2 * 255
  image = Image.fromarray(checkers.astype(np.uint8))
  tile = np.asarray(canvas.enlarge(image, 64))
  np.testing.assert_array_equal(
    tile[..., 0], checkers.repeat(16, axis=0).repeat(16, axis=1)
  )


def softmax(scale):
  return lambda scores: probabilities.softmax(scale * scores)


def test_rows_hold_the_best_matches_in_order_with_probabilities():
  scores = np.array(
    [[0.9, 0.1], [0.2, 0.8], [0.9, 0.3], [0.5, 0.5]], np.float32
  )
  owns = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], bool)
  rows = nearest._rank(
    scores, owns, ["cat", "dog"], apart, probabilities=softmax(10), count=4
  )
  assert [text for text, _ in rows.by_text] == ["cat", "dog"]
  found = rows.by_text[0][1]
  assert [hit.image.getpixel((0, 0))[0] for hit in found] == [0, 40, 60, 20]
  assert [hit.correct for hit in found] == [True, False, True, False]
  _, guesses = rows.by_image[2]
  assert [guess.text for guess in guesses] == ["cat", "dog"]
  assert [guess.correct for guess in guesses] == [False, True]
  # Softmax of two is the logistic function of their difference.
  assert guesses[0].probability == pytest.approx(1 / (1 + np.exp(-6)), rel=1e-6)


def test_misses_are_shown_and_counted_the_surest_first():
  scores = np.array([[0.9, 0.1], [0.9, 0.2], [0.7, 0.1], [0.1, 0.9]])
  owns = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], bool)
  rows = nearest._rank(
    scores, owns, ["cat", "dog"], apart, probabilities=softmax(10), count=4
  )
  assert (rows.missed, rows.images) == (2, 4)
  seen = [image.getpixel((0, 0))[0] for image, _ in rows.misses]
  assert seen == [20, 40]
  assert all(not guesses[0].correct for _, guesses in rows.misses)
  assert rows.misses[0][1][0].probability > rows.misses[1][1][0].probability
  few = report.draw(make_rows(), title="t")
  more = report.draw(
    dataclasses.replace(make_rows(), misses=rows.misses, missed=2, images=4),
    title="t",
  )
  assert more.height > few.height + 2 * 128


def test_a_miss_shows_the_right_text_however_far_down_it_is():
  scores = np.arange(9)[None] / 10.0
  owns = np.zeros((1, 9), bool)
  owns[0, [1, 2]] = True
  rows = nearest._rank(
    scores, owns, list("abcdefghi"), picture, probabilities=softmax(1), count=1
  )
  ((_, guesses),) = rows.misses
  assert "".join(guess.text for guess in guesses) == "ihgfc"
  assert [guess.correct for guess in guesses] == [False] * 4 + [True]


def test_a_row_and_the_rows_show_different_pictures():
  # Twelve images of three texts; images 0 to 5 are the same picture, but for
  # what JPEG loses.
  owns = np.eye(3, dtype=bool).repeat(4, axis=0)
  scores = owns - 0.01 * np.arange(12)[:, None]

  def image(i):
    return apart(i) if i > 5 else picture(100 + int(i))

  rows = nearest._rank(
    scores, owns, list("abc"), image, probabilities=softmax(9), count=3
  )
  for _, found in rows.by_text:
    shades = [hit.image.getpixel((0, 0)) for hit in found]
    assert len(set(shades)) == len(shades) == 5
  firsts = [guesses[0].text for _, guesses in rows.by_image]
  assert firsts == ["a", "b", "c"]


def test_images_of_the_rows_above_are_not_shown_again():
  owns = np.eye(20, dtype=bool)[np.arange(40) % 20]
  taken = nearest._of_different_texts(owns, set(range(20)), 4)
  assert len(taken) == 4 and min(taken) >= 20
  assert len({i % 20 for i in taken}) == 4
  assert nearest._of_different_texts(owns[:2], {0, 1}, 4) == [0, 1]


def test_losses_are_read_from_metrics_whatever_else_is_in_them(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert report.read_losses(path) == []
  lines = [
    *('{"step": 2, "loss": 1.5}', '{"step": 1, "loss": 2.0}', '{"step": 3'),
    *('{"step": 4, "loss": null}', "[]", "5", "", '{"step": 5, "loss": NaN}'),
    *('{"step": 6, "eval/x": 1}', "\udc80", '{"step": 2, "loss": 1.25}'),
    "[" * 100_000,
    f'{{"step": 7, "loss": 1{"0" * 400}}}',
    f'{{"step": 7, "loss": {"9" * 400}}}',
    f'{{"step": {"9" * 400}, "loss": 1}}',
  ]
  path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
  assert report.read_losses(path) == [(1, 2.0), (2, 1.25)]


@pytest.mark.parametrize(
  "losses", [[(1, 3.0), (9, 1.0)], [(1, -2.0), (2, -2.0)], [(0, 0.0), (1, 0.0)]]
)
def test_the_loss_is_drawn_from_two_steps_on(losses):
  plain = report.draw(make_rows(), title="t")
  page = report.draw(make_rows(), title="t", losses=losses)
  assert page.height > plain.height
  line = np.all(np.asarray(page) == (0x3F, 0x6F, 0xD1), axis=-1)
  assert line.any(axis=0).sum() > 900  # As wide as the page.
  one = report.draw(make_rows(), title="t", losses=losses[:1])
  assert one.height == plain.height


def test_only_texts_that_have_an_image_are_looked_for():
  owns = np.zeros((4, 6), bool)
  owns[:, [2, 5]] = True
  rows = nearest._rank(
    np.zeros((4, 6)),
    owns,
    list("abcdef"),
    picture,
    probabilities=softmax(1),
    count=3,
  )
  assert [text for text, _ in rows.by_text] == ["c", "f"]


SPEC = preprocess.Preprocess(image_size=8, mean=(0, 0, 0), std=(1, 1, 1))


def knows_labels(source):
  """Embeds images and prompts of labelled data by what their label is."""
  names = source.class_names
  by_pixels = {}
  for i in range(len(source)):
    record = source[i]
    image = preprocess.eval_image(preprocess.decode(record.image), SPEC)
    by_pixels[image.tobytes()] = record.label

  def embed_images(images):
    return np.eye(10)[[by_pixels[image.tobytes()] for image in images]]

  def embed_texts(texts):
    labels = [next(i for i in range(10) if names[i] in t) for t in texts]
    return np.eye(10)[labels]

  return embedding_model.Functions(embed_images, embed_texts, SPEC)


def test_a_perfect_model_has_only_correct_rows_on_labelled_data():
  source = sources.open_source("builtin:digits/test")
  rows = report.find_rows(
    source,
    model=knows_labels(source),
    logit_scale=100,
    count=3,
    most_records=100,
  )
  assert len(rows.by_text) == len(rows.by_image) == 3
  for text, found in rows.by_text:
    assert any(name in text for name in source.class_names)
    assert [hit.correct for hit in found] == [True] * 5
    assert found[0].image.size[0] >= 8
  for _, guesses in rows.by_image:
    assert guesses[0].correct and guesses[0].probability > 0.99


def test_a_sigmoid_models_guesses_are_each_by_itself():
  source = sources.open_source("builtin:digits/test")
  rows = report.find_rows(
    source,
    model=knows_labels(source),
    logit_scale=8,
    logit_bias=-8,
    probabilities="sigmoid",
    count=1,
    most_records=10,
  )
  ((_, guesses),) = rows.by_image
  # Logits of 0 for what fits and of -8 for all else.
  assert guesses[0].probability == pytest.approx(0.5)
  assert guesses[1].probability == pytest.approx(1 / (1 + np.exp(8)))


class Captions:
  """Unlabelled records, the second of them bad."""

  class_names = templates = None
  fingerprint = "x"

  def __init__(self, count=5):
    self.real = builtin.open_builtin("digits/test", {})
    self.count = count

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index == 1:
      raise sources.BadRecord("empty", "k1")
    texts = (f"caption {index}", "shared")
    return sources.Record(self.real[index].image, texts, f"k{index}")


def test_captions_take_the_place_of_classes_where_there_are_none():
  rows = report.find_rows(
    Captions(),
    model=embedding_model.Functions(
      embed_images=lambda images: np.eye(4)[: len(images)],
      embed_texts=lambda texts: np.random.default_rng(0).normal(
        size=(len(texts), 4)
      ),
      preprocess=SPEC,
    ),
    logit_scale=1,
    count=9,
  )
  texts = [text for text, _ in rows.by_text]
  # Each caption once, none of the bad record, in the order of the data.
  assert texts == [
    "caption 0",
    "shared",
    "caption 2",
    "caption 3",
    "caption 4",
  ]
  assert all(hit.correct for hit in dict(rows.by_text)["shared"])
  assert len(rows.by_image) == 4


def test_a_sheet_on_nothing_is_an_error():
  with pytest.raises(errors.UserError, match="no usable record"):
    report.find_rows(
      Captions(0),
      model=embedding_model.Functions(None, None, SPEC),
      logit_scale=1,
    )


@pytest.mark.parametrize("total, most", [(10, 4), (4, 4), (3, 4), (1001, 7)])
def test_a_spread_covers_all_of_a_source(total, most):
  spread = nearest.Spread(range(total), most)
  picked = [spread[i] for i in range(len(spread))]
  assert len(picked) == len(set(picked)) == min(total, most)
  gaps = np.diff([*picked, total])
  assert gaps.max() <= -(-total // len(picked))


def test_the_file_is_a_png_and_appears_at_once(tmp_path):
  image = report.draw(make_rows(), title="t")
  report.save(image, tmp_path / "report.png")
  with Image.open(tmp_path / "report.png") as saved:
    assert (saved.format, saved.size) == ("PNG", image.size)
  assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(
  tmp_path, monkeypatch
):
  path = tmp_path / "report.png"
  path.write_bytes(b"old")
  broken = types.SimpleNamespace(save=lambda *_, **__: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    report.save(broken, path)
  assert path.read_bytes() == b"old"
