import dataclasses
import io
import json
import multiprocessing
import pathlib
import threading
import zlib

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import clip_jax
import small_model
from clip_jax import config as config_lib
from clip_jax import encoding, errors, inference, loading
from clip_jax.checkpoints import saving
from clip_jax.checkpoints import state as state_lib
from clip_jax.evals import probabilities
from clip_jax.models import variants

SPEC = small_model.SPEC
random_images = small_model.random_images
encoded = small_model.encoded


@pytest.fixture(scope="module")
def model():
  return small_model.make()


@pytest.fixture
def clip(model):
  return loading.assemble(*model, spec=SPEC)


def test_every_kind_of_image_input_gives_the_same_embedding(clip, tmp_path):
  array = random_images(1, size=16)[0]
  path = tmp_path / "image.png"
  path.write_bytes(encoded(array))
  want = clip.embed_images(array[None])
  inputs = [
    array,
    array[None],
    Image.fromarray(array),
    encoded(array),
    path,
    str(path),
    [str(path)],
    (array,),
  ]
  for images in inputs:
    got = clip.encode_image(images)
    np.testing.assert_array_equal(got, want)
  mixed = clip.encode_image([array, path, encoded(array)])
  # Three rows are another batch size than one.
  np.testing.assert_allclose(mixed, np.repeat(want, 3, axis=0), atol=2e-6)
  np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-6)


def test_more_images_than_are_decoded_at_once_keep_their_order(
  clip, monkeypatch
):
  images = random_images(7)
  monkeypatch.setattr(encoding, "_AT_ONCE", 3)
  np.testing.assert_allclose(
    clip.encode_image(list(images)), clip.embed_images(images), atol=2e-6
  )


def test_embedding_nothing_gives_no_rows(clip):
  assert clip.encode_image([]).shape == (0, 12)
  assert clip.encode_text([]).shape == (0, 12)
  nothing = np.zeros((0, 16, 16, 3), np.uint8)
  assert clip.image_features(nothing).shape == (0, 24)
  assert clip.patch_embeddings(nothing).shape == (0, 2, 2, 12)


def test_one_text_is_a_list_of_one(clip):
  both = clip.encode_text(["a cat", "a dog"])
  assert both.shape == (2, 12)
  np.testing.assert_allclose(clip.encode_text("a dog"), both[1:], atol=2e-6)
  assert not np.allclose(both[0], both[1], atol=1e-3)


def test_encode_tells_texts_from_images(clip):
  a, b = (Image.fromarray(x) for x in random_images(2))
  mixed = clip.encode(["a dog", a, "no/path.png", b])
  texts = clip.encode_text(["a dog", "no/path.png"])
  np.testing.assert_array_equal(mixed[[0, 2]], texts)
  np.testing.assert_array_equal(mixed[[1, 3]], clip.encode_image([a, b]))
  np.testing.assert_array_equal(clip.encode("a dog"), clip.encode(["a dog"])[0])
  assert clip.encode(a).shape == (12,) and clip.encode([]).shape == (0, 12)


def test_encode_takes_one_image_of_any_kind(clip, tmp_path):
  image = random_images(1)[0]
  path = tmp_path / "a.png"
  Image.fromarray(image).save(path)
  want = clip.encode_image(image)[0]
  for one in (image, jax.numpy.asarray(image), path, path.read_bytes()):
    np.testing.assert_array_equal(clip.encode(one), want)
  with path.open("rb") as file:
    np.testing.assert_array_equal(clip.encode(file), want)
  for several in ([image], image[None], (x for x in [path])):
    np.testing.assert_array_equal(clip.encode(several), want[None])
  for wrong in (5, None, {"a": image}, [5]):
    with pytest.raises(errors.UserError):
      clip.encode(wrong)


def test_the_model_as_an_nnx_module_computes_the_same(clip):
  model = clip.to_nnx()
  images = random_images(2).astype(np.float32)
  tokens = clip.tokenize(["a dog", "two cats"])
  want = jax.jit(clip.module.apply)(clip.variables, images, tokens)
  got = nnx.jit(lambda model, *inputs: model(*inputs))(model, images, tokens)
  # Two programs of the same numbers.
  for name in ("image_embeds", "text_embeds", "logit_scale"):
    a, b = getattr(got, name), getattr(want, name)
    np.testing.assert_allclose(a, b, atol=1e-6)
  # nnx finds every parameter, so that it can train them.
  parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert len(parameters) == len(jax.tree.leaves(clip.variables["params"]))


@pytest.mark.parametrize(
  "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8)]
)
def test_an_array_that_is_no_image_is_refused(clip, array):
  with pytest.raises(errors.UserError, match="must be uint8"):
    clip.encode_image(array)


def test_the_file_that_is_no_image_is_named(clip, tmp_path):
  (tmp_path / "notes.png").write_text("not an image")
  with pytest.raises(errors.UserError, match=r"notes\.png"):
    clip.encode_image([random_images(1)[0], tmp_path / "notes.png"])


def test_probabilities_are_the_softmax_of_scaled_cosines(clip):
  images, labels = random_images(3), ["cat", "dog", "small owl"]
  got = clip.classify(images, labels, templates="one {}")
  texts = clip.encode_text([f"one {label}" for label in labels])
  for row, image in zip(got, clip.embed_images(images), strict=True):
    weights = [np.exp(np.dot(image, text) / 0.07) for text in texts]
    # float32 cosines, times 14.
    np.testing.assert_allclose(row, weights / np.sum(weights), rtol=1e-4)
  assert got.shape == (3, 3)
  assert got.dtype == np.float32


def test_the_logit_scale_is_what_the_checkpoint_says(model):
  module, variables = model
  params = variables["params"] | {"log_scale": np.float32(7)}
  clip = loading.assemble(module, variables | {"params": params}, spec=SPEC)
  assert clip.logit_scale == pytest.approx(np.exp(7))


@pytest.mark.parametrize("log_scale", [np.nan, np.inf])
def test_probabilities_of_no_finite_scale_are_refused(model, log_scale):
  module, variables = model
  params = {**variables["params"], "log_scale": np.float32(log_scale)}
  broken = loading.assemble(module, {**variables, "params": params}, spec=SPEC)
  images = random_images(2)
  with pytest.raises(errors.UserError, match=r"logit scale is (nan|inf); its"):
    broken.classify(images, labels=["cat", "dog"])
  scale = np.float32(np.exp(params["log_scale"]))
  with pytest.raises(errors.UserError, match=r"logit scale is (nan|inf); its"):
    probabilities.of(
      np.zeros((1, 2)), kind="softmax", logit_scale=scale, logit_bias=None
    )
  # Cosines do not depend on it.
  assert np.isfinite(broken.similarity(images, ["cat"])).all()


def test_a_label_set_is_embedded_once_and_only_the_latest_are_kept(
  clip, monkeypatch
):
  monkeypatch.setattr(inference, "_LABEL_SETS_KEPT", 2)
  asked = []

  class Counted(type(clip.tokenizer)):
    def rows(self, texts):
      asked.append(list(texts))
      return super().rows(texts)

  tokenizer = Counted(**vars(clip.tokenizer))
  counted = dataclasses.replace(clip, tokenizer=tokenizer)
  image = random_images(1)
  first = counted.classify(image, ["cat", "dog"])
  np.testing.assert_array_equal(counted.classify(image, ["cat", "dog"]), first)
  assert len(asked) == 1
  counted.classify(image, ["cat", "dog"], templates=["{}"])
  counted.classify(image, ["cat", "dog"])
  assert len(asked) == 2  # Other templates are another set.
  counted.classify(image, ["cat", "owl"])
  counted.classify(image, ["cat", "dog"])
  assert len(asked) == 3  # The second set was the oldest, and is gone.
  counted.classify(image, ["cat", "dog"], templates=["{}"])
  assert len(asked) == 4


def test_threads_may_classify_at_the_same_time(clip):
  images, results = random_images(2), {}

  def classify(number):
    labels = ["cat", f"label {number % 3}"]
    results[number] = labels[1], clip.classify(images, labels)

  threads = [threading.Thread(target=classify, args=(i,)) for i in range(9)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 9
  for label, got in results.values():
    want = clip.classify(images, ["cat", label])
    np.testing.assert_array_equal(got, want)


def change_leaf(variables, path):
  changed = jax.tree.map(np.array, variables)
  leaf = changed["params"]
  *parents, last = path
  for name in parents:
    leaf = leaf[name]
  leaf[last].flat[0] += 1e-3
  return changed


def test_the_fingerprint_tells_models_apart(model, clip):
  _, variables = model
  same = loading.assemble(
    variants.create_model(SPEC), jax.tree.map(np.array, variables), spec=SPEC
  )
  assert same.fingerprint == clip.fingerprint
  others = [
    dataclasses.replace(
      clip, variables=change_leaf(variables, ("text_projection", "kernel"))
    ),
    dataclasses.replace(
      clip,
      preprocess=dataclasses.replace(clip.preprocess, interpolation="bilinear"),
    ),
    dataclasses.replace(
      clip, tokenizer=dataclasses.replace(clip.tokenizer, context_length=8)
    ),
  ]
  assert len({other.fingerprint for other in [clip, *others]}) == 4


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory):
  """A run that saved its parameters at steps 1 and 3, times the step."""
  path = tmp_path_factory.mktemp("run")
  config = config_lib.default_config()
  config.model, config.precision = "tiny-vit", "float32"
  config.model_overrides.update(small_model.OVERRIDES)
  config.data.train, config.steps = "builtin:digits/train", 4
  (path / "config.json").write_text(config_lib.to_json(config))
  with saving.Checkpoints(path) as checkpoints:
    for step in (1, 3):
      state = state_lib.TrainState(
        step=np.int32(step),
        params=jax.tree.map(lambda x, step=step: x * step, model[1]["params"]),
        batch_stats={},
        opt_state={},
        skipped=np.int32(0),
      )
      checkpoints.save(state, step=step, config=config, counters={})
    checkpoints.wait()
  return path


@pytest.mark.parametrize("step", [None, 1])
def test_load_gives_the_newest_model_of_a_run_or_the_asked_one(
  workdir, model, step
):
  clip = clip_jax.load(str(workdir), step=step)
  assert (clip.path, clip.step) == (str(workdir.resolve()), step or 3)
  scaled = jax.tree.map(lambda x: x * clip.step, model[1]["params"])
  images = random_images(8)
  want = loading.assemble(model[0], {"params": scaled}, spec=SPEC)
  np.testing.assert_allclose(
    clip.encode_image(images), want.encode_image(images), atol=2e-6
  )
  assert clip.logit_scale == want.logit_scale


def test_load_says_which_steps_there_are(workdir):
  with pytest.raises(errors.UserError, match="no checkpoint of step 2"):
    loading.load(workdir, step=2)
  for step in (1.0, "1", True):
    with pytest.raises(errors.UserError, match=f"{step!r} must be a whole"):
      loading.load(workdir, step=step)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda path: None, "does not exist"),
    (lambda path: path.write_text(""), "is a file"),
    (lambda path: path.mkdir(), "found: nothing"),
    (
      lambda path: (path / "checkpoints").mkdir(parents=True),
      "found: checkpoints",
    ),
  ],
)
def test_what_is_no_model_is_described(tmp_path, make, message):
  make(tmp_path / "model")
  with pytest.raises(errors.UserError, match=message) as caught:
    loading.load(tmp_path / "model")
  assert "a workdir of `clip-jax train`" in str(caught.value)


def test_a_model_is_named_by_a_text_or_a_path():
  with pytest.raises(errors.UserError, match=r"hf-hub.*got int"):
    clip_jax.load(3)


def test_a_workdir_whose_config_is_damaged_is_refused(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "config.json").write_text(json.dumps({"modell": "x"}))
  with pytest.raises(errors.UserError, match="modell"):
    loading.load(pathlib.Path(tmp_path))


def test_the_package_offers_its_error():
  from clip_jax import errors

  assert clip_jax.UserError is errors.UserError
  assert "UserError" in dir(clip_jax)


def test_an_address_is_no_place_for_something_new(clip, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match="clip-jax push MODEL me/mine"):
    clip.save("hf-hub:me/mine")
  with pytest.raises(errors.UserError, match="give its path alone, 'out'"):
    errors.check_out("arrayrecord:out")
  assert not any(tmp_path.iterdir())
  errors.check_new("DEST", "a:b")  # A name like others.


@pytest.mark.parametrize("size", [True, False, 0, -1, 1.5, "4"])
def test_a_batch_size_is_a_whole_number(clip, size):
  with pytest.raises(errors.UserError, match="must be a whole number"):
    clip.encode_text("a cat", batch_size=size)


def test_a_batch_size_may_be_beyond_any_number_of_inputs(clip):
  images = random_images(3)
  want = clip.encode_image(images)
  np.testing.assert_array_equal(
    clip.encode_image(images, batch_size=2**70), want
  )


@pytest.mark.parametrize("most", [0, -1, True, "9", float("nan")])
def test_the_most_pixels_are_a_number(clip, most):
  with pytest.raises(errors.UserError, match=r"max_pixels=.* at least 1"):
    clip.with_max_pixels(most)


class _Failing(io.RawIOBase):
  """A file whose reading fails, as that of a damaged archive does."""

  def __init__(self, error):
    self._error = error

  def read(self, size=-1):
    if self._error is None:
      return None
    raise self._error


@pytest.mark.parametrize(
  "error, said",
  [
    (EOFError("ended early"), "cannot be read: ended early"),
    (OSError(5, "Input/output error"), "Input/output error"),
    (zlib.error("Error -3"), "cannot be read: Error -3"),
    (None, "no data is there yet"),
  ],
)
def test_an_open_file_that_cannot_be_read_is_named(clip, error, said):
  image = random_images(1)[0]
  with pytest.raises(errors.UserError, match=said) as caught:
    clip.encode_image([image, _Failing(error)])
  assert str(caught.value).startswith("images[1]: ")


def test_a_file_open_for_writing_and_a_released_view_are_refused(
  clip, tmp_path
):
  with (
    open(tmp_path / "new.png", "wb") as file,
    pytest.raises(errors.UserError, match=r"new\.png: cannot be read"),
  ):
    clip.encode_image(file)
  view = memoryview(encoded(random_images(1)[0]))
  view.release()
  with pytest.raises(errors.UserError, match=r"cannot be read: .* released"):
    clip.encode_image(view)


def test_labels_as_bytes_say_how_to_decode_them(clip):
  with pytest.raises(errors.UserError, match=r"got bytes; write .* \.decode"):
    clip.classify(random_images(1), labels=b"a cat,a dog")


def _encode(clip, answers):
  try:
    clip.encode_text("a dog")
  except errors.UserError as error:
    answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_that_jax_cannot_compute_in_it(clip):
  clip.encode_text("a dog")
  forking = multiprocessing.get_context("fork")
  answers = forking.SimpleQueue()
  child = forking.Process(target=_encode, args=(clip, answers), daemon=True)
  child.start()
  child.join(20)
  child.kill()
  assert not answers.empty()
  assert "spawn" in answers.get()
