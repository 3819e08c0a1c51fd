"""What the Python API takes and gives."""

import dataclasses
import io
import json
import logging
import pathlib
import pickle
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import clip_jax
import small_model
from clip_jax import loading, names, sharding
from clip_jax.convert import hub
from clip_jax.convert.formats import model_dir
from clip_jax.evals import probabilities
from clip_jax.models import variants

SPEC = variants.spec(
  "tiny-vit",
  {
    "embed_dim": 12,
    "image": {"image_size": 16, "patch_size": 8, "width": 24, "depth": 1},
    "text": {"context_length": 9, "width": 20, "depth": 1},
  },
)
BIASED = variants.spec(SPEC, {"init_logit_bias": -10.0}) | {
  "probabilities": "sigmoid"
}


def make(spec, **scalars):
  module = variants.create_model(spec)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.2).astype(x.dtype),
    variants.abstract_variables(module),
  )
  variables["params"] |= {k: np.float32(v) for k, v in scalars.items()}
  return loading.assemble(module, variables, spec=spec)


@pytest.fixture(scope="module")
def shared():
  return make(SPEC, log_scale=np.log(12))


@pytest.fixture
def clip(shared):
  """The same model each time, which has told of nothing yet."""
  return loading.assemble(shared.module, shared.variables, spec=SPEC)


@pytest.fixture(scope="module")
def siglip():
  return make(BIASED, log_scale=np.log(12), logit_bias=-9.5)


def pixels(count=3):
  rng = np.random.default_rng(1)
  return rng.integers(0, 256, (count, 16, 16, 3), np.uint8)


class Pipe:
  """An open file that cannot go back, as of a socket."""

  def __init__(self, data):
    self.data = data

  def read(self, size):
    part, self.data = self.data[:size], self.data[size:]
    return part


def at_its_end(data):
  """A file that was just written."""
  file = io.BytesIO()
  file.write(data)
  return file


INPUTS = {
  "numpy": lambda x: x,
  "numpy with one channel less": lambda x: x[:, :, :1],
  "numpy with transparency": lambda x: np.dstack(
    [x, np.full((16, 16), 255, np.uint8)]
  ),
  "numpy turned": lambda x: np.asfortranarray(x),
  "jax": jnp.asarray,
  "torch": torch.from_numpy,
  "pillow": Image.fromarray,
  "bytes": small_model.encoded,
  "bytearray": lambda x: bytearray(small_model.encoded(x)),
  "memoryview": lambda x: memoryview(small_model.encoded(x)),
  "file": lambda x: io.BytesIO(small_model.encoded(x)),
  "file at its end": lambda x: at_its_end(small_model.encoded(x)),
  "pipe": lambda x: Pipe(small_model.encoded(x)),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_an_image_may_be_of_any_kind_alone_and_among_others(clip, kind):
  array = pixels(1)[0]
  if kind == "numpy with one channel less":
    array = np.repeat(array[:, :, :1], 3, axis=2)
  want = clip.preprocess(array)
  np.testing.assert_array_equal(want, array)
  np.testing.assert_array_equal(clip.preprocess(INPUTS[kind](array)), want)
  seen = []
  stacked = np.stack([want, want])
  object.__setattr__(
    clip, "embed_images", lambda x: seen.append(x) or np.zeros((len(x), 12))
  )
  assert clip.encode_image(INPUTS[kind](array)).shape == (1, 12)
  clip.encode_image([array, INPUTS[kind](array)])
  np.testing.assert_array_equal(seen[0], want[None])
  np.testing.assert_array_equal(seen[1], stacked)


@pytest.mark.parametrize(
  "several",
  [
    list,
    tuple,
    iter,
    lambda x: (row for row in x),
    lambda x: x,
    jnp.asarray,
    torch.from_numpy,
  ],
)
def test_several_images_may_come_in_many_ways(clip, several):
  images = pixels()
  want = clip.embed_images(images)
  np.testing.assert_array_equal(clip.encode_image(several(images)), want)


def test_an_array_of_paths_is_a_list_of_them(clip, tmp_path):
  for i, image in enumerate(pixels(2)):
    (tmp_path / f"{i}.png").write_bytes(small_model.encoded(image))
  paths = np.array([str(tmp_path / "0.png"), str(tmp_path / "1.png")])
  want = clip.embed_images(pixels(2))
  np.testing.assert_array_equal(clip.encode_image(paths), want)


UNIT = np.linspace(0, 1, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)
# An array that is no image, and what the error says to write.
REFUSED = {
  "floats": (UNIT, "Write (255 * x).round().astype('uint8')."),
  "floats to 255": (255 * UNIT, "Write x.round().astype('uint8')."),
  "normalised": (UNIT - 0.5, "before it was normalised"),
  "channels first": (
    np.zeros((3, 16, 20), np.uint8),
    "channels first. Write np.moveaxis(x, -3, -1).",
  ),
  "a batch, channels first": (
    np.zeros((2, 3, 16, 20), np.uint8),
    "Write np.moveaxis(x, -3, -1).",
  ),
  "torch's usual": (
    torch.from_numpy(UNIT).movedim(-1, 0),
    "Write (255 * x.movedim(-3, -1)).round().byte().",
  ),
  "torch's floats of 16 bits": (
    torch.from_numpy(UNIT).to(torch.bfloat16),
    "Write (255 * x).round().byte().",
  ),
  "torch's with a gradient": (
    torch.from_numpy(UNIT).clone().requires_grad_(),
    "Write (255 * x).round().byte().",
  ),
  "jax": (
    jnp.asarray(UNIT).transpose(2, 0, 1),
    "Write (255 * jnp.moveaxis(x, -3, -1)).round().astype('uint8').",
  ),
  "long integers": (np.full((4, 4, 3), 200), "Write x.astype('uint8')."),
  "true and false": (UNIT > 0.5, "Write (255 * x).astype('uint8')."),
  "16 bits": (np.full((4, 4, 3), 999, np.uint16), "scale them to 0 to 255"),
  "two channels": (np.zeros((4, 5, 2), np.uint8), "(height, width, 3)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_array_that_is_no_image_is_refused_with_what_to_write(clip, name):
  array, remedy = REFUSED[name]
  for images in (array, [array]):
    with pytest.raises(clip_jax.UserError) as caught:
      clip.encode_image(images)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in REFUSED if "torch" not in n])
def test_what_an_error_says_to_write_makes_an_image(clip, name):
  array, remedy = REFUSED[name]
  if not remedy.rpartition("Write ")[1]:
    return
  line = remedy.rpartition("Write ")[2].rstrip(".")
  image = eval(line, {"np": np, "jnp": jnp, "x": array})
  assert clip.encode_image(image).shape[1] == 12


@pytest.mark.parametrize(
  "images, message",
  [
    (None, "got NoneType"),
    ([None], r"images\[0\]|got NoneType"),
    ({"a": 1}, "got dict"),
    ({"a.png"}, "a list of these; got set"),  # Which has no order.
    (5, "got int"),
    ([b"x", 5], "not an image"),
    (io.StringIO("text"), "mode 'rb'"),
    (b"", "is empty"),
    (np.zeros((0, 4, 3), np.uint8), "is empty"),
    ([pixels(2)], "One image was expected"),
    ([pixels(1)[0], UNIT], r"images\[1\]: An image array must be uint8"),
    ([pixels(1)[0], b"junk"], r"images\[1\]: The image"),
  ],
)
def test_what_is_no_image_is_a_clear_error(clip, images, message):
  with pytest.raises(clip_jax.UserError, match=message):
    clip.encode_image(images)


def _deleted():
  array = jnp.zeros((16, 16, 3), jnp.uint8)
  array.delete()
  return array


@pytest.mark.parametrize(
  ("array", "said"),
  [
    (torch.empty(16, 16, 3, dtype=torch.uint8, device="meta"), "no data"),
    (torch.empty(16, 16, 3, device="meta"), "meta tensor"),
    (torch.zeros(16, 16, 3, dtype=torch.uint8).to_sparse(), "(?i)sparse"),
    (_deleted(), "deleted"),
    # More than any memory holds, if it were copied.
    (
      np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)),
      "is 1000000 x 1000000 pixels; a side may have",
    ),
  ],
)
def test_an_array_that_cannot_be_copied_is_a_clear_error(clip, array, said):
  for images in (array, [array]):
    with pytest.raises(clip_jax.UserError, match=said):
      clip.encode_image(images)


def test_texts_may_come_in_many_ways(clip):
  texts = ["a cat", "a dog"]
  want = clip.encode_text(texts)
  keys, generator = (
    (lambda x: dict.fromkeys(x).keys()),
    (lambda x: (t for t in x)),
  )
  for several in (tuple, iter, np.array, generator, keys):
    np.testing.assert_array_equal(clip.encode_text(several(texts)), want)
  tokens = clip.tokenize(texts)
  assert (tokens.shape, tokens.dtype) == ((2, 9), np.int32)
  for ids in (tokens, jnp.asarray(tokens), torch.from_numpy(tokens).long()):
    np.testing.assert_array_equal(clip.encode_text(ids), want)
  for wrong in (
    tokens[:, :4, None],
    tokens[:, :0],
    np.zeros((2, 30), np.int32),
  ):
    with pytest.raises(clip_jax.UserError, match=r"shape \(n, 9\)"):
      clip.encode_text(wrong)
  for wrong in (tokens - 60_000, tokens + 49_000):
    with pytest.raises(clip_jax.UserError, match="knows only the ids 0 to"):
      clip.encode_text(wrong)


@pytest.mark.parametrize(
  "texts", [None, 3, [None], b"cat", {"cat"}, ["cat", 1]]
)
def test_what_is_no_text_is_a_clear_error(clip, texts):
  got = r"got (NoneType|int|set|bytes; write it as \.decode\(\))"
  with pytest.raises(clip_jax.UserError, match=got):
    clip.encode_text(texts)


def test_a_model_is_shown_in_a_line(clip):
  assert repr(clip) == (
    "Clip(images of 16 pixels, texts of 9 ids, embed_dim=12)"
  )


def test_batches_are_no_larger_than_asked_for_and_progress_is_told(clip):
  sizes, told = [], []
  embed = clip.embed_images
  object.__setattr__(
    clip, "embed_images", lambda x: sizes.append(len(x)) or embed(x)
  )
  images = pixels(5)
  want = embed(images)
  got = clip.encode_image(
    images, batch_size=np.int64(2), progress=lambda *x: told.append(x)
  )
  np.testing.assert_allclose(got, want, atol=2e-6)
  assert sizes == [2, 2, 1]
  assert told == [(2, 5), (4, 5), (5, 5)]
  told.clear()
  clip.encode_image(iter(images), progress=lambda *counts: told.append(counts))
  assert told == [(5, None)]
  for wrong in (0, "3", 1.5):
    with pytest.raises(clip_jax.UserError, match="batch_size="):
      clip.encode_image(images, batch_size=wrong)


def test_a_generator_is_read_a_batch_at_a_time(clip):
  taken = []

  def images():
    for i, image in enumerate(pixels(6)):
      taken.append(i)
      yield image

  most = []
  clip.encode_image(
    images(),
    batch_size=2,
    progress=lambda done, _: most.append(len(taken) - done),
  )
  assert max(most) == 0


def test_results_are_jax_arrays_on_request(clip):
  images, texts = pixels(2), ["a cat", "a dog"]
  calls = {
    "encode_image": (images,),
    "encode_text": (texts,),
    "similarity": (images, texts),
    "classify": (images, ["cat", "dog"]),
  }
  for name, arguments in calls.items():
    want = getattr(clip, name)(*arguments)
    got = getattr(clip, name)(*arguments, as_numpy=False)
    assert isinstance(want, np.ndarray)
    assert isinstance(got, jax.Array)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_similarity_is_the_cosine_of_each_pair(clip):
  images, texts = pixels(3), ["a cat", "a dog"]
  cosines = clip.similarity(images, texts)
  want = clip.encode_image(images) @ clip.encode_text(texts).T
  assert cosines.shape == (3, 2)
  np.testing.assert_allclose(cosines, want, atol=1e-6)


def test_labels_and_templates_may_be_as_on_the_command_line(clip, tmp_path):
  image = pixels(1)
  want = clip.classify(image, ["cat", "dog"], templates=["one {}", "two {}"])
  (tmp_path / "labels.txt").write_text("cat\ndog\n")
  (tmp_path / "templates.txt").write_text("one {}\ntwo {}\n")
  templates = str(tmp_path / "templates.txt")
  for labels in ("cat,dog", "cat, dog", str(tmp_path / "labels.txt")):
    got = clip.classify(image, labels, templates=templates)
    np.testing.assert_array_equal(got, want)
  with pytest.raises(clip_jax.UserError, match="got int"):
    clip.classify(image, 5)
  with pytest.raises(clip_jax.UserError, match=r"sorted\(labels\)"):
    clip.classify(image, {"a", "b"})


def test_functions_may_be_traced(clip):
  images, texts = pixels(2), ["a cat", "a dog"]
  tokens = clip.tokenize(texts)
  for function, given, want in (
    (clip.encode_image, images, clip.encode_image(images)),
    (clip.embed_images, images, clip.encode_image(images)),
    (clip.image_features, images, clip.image_features(images)),
    (clip.patch_embeddings, images, clip.patch_embeddings(images)),
    (clip.encode, images, clip.encode(images)),
    (clip.encode, images[0], clip.encode(images[0])),
    (clip.encode_text, tokens, clip.encode_text(texts)),
    (
      lambda x: clip.similarity(x, texts),
      images,
      clip.similarity(images, texts),
    ),
    (
      lambda x: clip.classify(x, "one,two"),
      images,
      clip.classify(images, "one,two"),
    ),
    (
      jax.vmap(lambda x: clip.encode_image(x)[0]),
      images,
      clip.encode_image(images),
    ),
  ):
    np.testing.assert_allclose(jax.jit(function)(given), want, atol=2e-6)
  for function, given in (
    (clip.encode_image, images),
    (clip.encode_text, tokens),
  ):
    got = jax.jit(lambda x, f=function: f([x[0], x[1]]))(given)
    np.testing.assert_allclose(got, function(given), atol=2e-6)


def test_a_model_can_be_pickled(clip):
  again = pickle.loads(pickle.dumps(clip))
  assert again.fingerprint == clip.fingerprint
  images = pixels(2)
  # On all devices now, which round otherwise than one.
  np.testing.assert_allclose(
    again.classify(images, "a,b"), clip.classify(images, "a,b"), rtol=1e-6
  )


def test_texts_are_embedded_in_a_trace_on_several_devices(shared):
  mesh = sharding.make_mesh()
  clip = loading.assemble(shared.module, shared.variables, spec=SPEC, mesh=mesh)
  images = pixels(2)
  similar = jax.jit(lambda x: clip.similarity(x, ["a cat"]))
  want = shared.similarity(images, ["a cat"])
  np.testing.assert_allclose(similar(images), want, atol=2e-6)


def test_gradients_go_through_to_images_and_to_variables(clip):
  size = clip.preprocess.image_size
  rng = np.random.default_rng(2)
  images = rng.normal(size=(1, size, size, 3)).astype(np.float32)
  target = clip.encode_text("a cat")[0]

  def cosine(x):
    return (clip.encode_image(x) @ target)[0]

  def cosine_of(variables, x):
    embeds = clip.module.apply(variables, x, method="encode_image")
    return (embeds @ target)[0]

  slope = jax.jit(jax.grad(cosine))(images)
  direction = rng.normal(size=images.shape).astype(np.float32)
  step = 1e-2 * direction
  change = jax.jit(cosine)(images + step) - jax.jit(cosine)(images - step)
  # A central difference in float32.
  np.testing.assert_allclose(np.vdot(slope, step) * 2, change, rtol=2e-2)
  np.testing.assert_allclose(
    jax.jit(jax.grad(cosine_of, argnums=1))(clip.variables, images),
    slope,
    rtol=1e-4,
    atol=1e-6,
  )
  tree = jax.jit(jax.grad(cosine_of))(clip.variables, images)
  assert np.abs(tree["params"]["image_projection"]["kernel"]).max() > 0


def test_a_traced_image_that_is_not_prepared_is_refused(clip):
  with pytest.raises(clip_jax.UserError, match=r"\(n, 16, 16, 3\)"):
    jax.jit(clip.encode_image)(np.zeros((1, 20, 20, 3), np.uint8))
  with pytest.raises(clip_jax.UserError, match=r"\(n, 16, 16, 3\)"):
    jax.jit(clip.image_features)(np.zeros((1, 20, 20, 3), np.uint8))


def test_what_cannot_be_traced_is_refused(clip):
  length = clip.tokenizer.context_length
  with pytest.raises(clip_jax.UserError, match=r"must be tokens, .* float32"):
    jax.jit(clip.encode_text)(np.zeros((1, length), np.float32))
  image = pixels(1)[0]
  for others in (["photo.png"], [np.zeros((2, 2), np.uint8)]):
    with pytest.raises(clip_jax.UserError, match="arrays of one shape"):
      jax.jit(lambda x, others=others: clip.encode_image([x, *others]))(image)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, bool])
def test_traced_pixels_of_other_types_are_refused(clip, dtype):
  """The model would take them for normalised ones."""
  for encode in (clip.encode_image, clip.similarity):
    more = (clip.tokenize("a"),) if encode == clip.similarity else ()
    with pytest.raises(clip_jax.UserError, match="must be uint8 from 0 to 255"):
      jax.jit(encode)(pixels(1).astype(dtype), *more)


def test_a_generator_of_traced_inputs_is_encoded(clip):
  images, tokens = pixels(2), clip.tokenize(["a cat", "a dog"])
  for encode, given in (
    (clip.encode_image, images),
    (clip.encode_text, tokens),
  ):
    np.testing.assert_allclose(
      jax.jit(lambda *x, encode=encode: encode(each for each in x))(*given),
      encode(given),
      atol=1e-5,
    )


def test_an_array_of_a_files_bytes_gets_the_remedy(clip):
  encoded = np.frombuffer(b"\x89PNG", np.uint8)
  for array, remedy in (
    (encoded, r"give x\.tobytes"),
    (jnp.asarray(encoded), r"give x\.tobytes"),
    (torch.tensor(encoded), r"give x\.numpy\(\)\.tobytes"),
  ):
    for images in (array, [array]):
      with pytest.raises(clip_jax.UserError, match=rf"shape \(4,\).*{remedy}"):
        clip.encode_image(images)


@pytest.mark.parametrize("dtype", [None, np.uint8, object])
def test_an_array_of_no_paths_has_no_embeddings(clip, dtype):
  """NumPy makes floats of an empty list."""
  assert clip.encode_image(np.array([], dtype)).shape[0] == 0


def test_one_token_is_no_text(clip):
  for tokens in (np.int64(5), np.array(5)):
    with pytest.raises(clip_jax.UserError, match=r"\(n, \d+\).*got \(\)"):
      clip.encode_text(tokens)
    with pytest.raises(clip_jax.UserError, match=r"got \(\)"):
      jax.jit(clip.encode_text)(tokens)


def test_sigmoid_models_tell_of_each_label_by_itself(siglip):
  images, labels = pixels(2), ["cat", "dog", "owl"]
  texts = [f"a photo of a {label}." for label in labels]
  cosines = siglip.similarity(images, texts).astype(np.float64)
  logits = 12 * cosines - 9.5
  got = siglip.classify(images, labels)
  np.testing.assert_allclose(got, 1 / (1 + np.exp(-logits)), rtol=1e-4)
  shares = siglip.classify(images, labels, probabilities="softmax")
  np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
  weights = np.exp(logits)
  want = weights / weights.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(shares, want, rtol=1e-4)


def test_a_model_without_a_bias_gives_no_sigmoid(clip):
  assert clip.probabilities == "softmax"
  with pytest.raises(clip_jax.UserError, match="need a logit bias"):
    clip.classify(pixels(1), "cat,dog", probabilities="sigmoid")
  with pytest.raises(clip_jax.UserError, match="'softmax'"):
    clip.classify(pixels(1), "cat,dog", probabilities="sofmax")


def test_kinds_of_probabilities_are_named_once():
  assert tuple(probabilities.KINDS) == names.PROBABILITIES
  far = np.array([[-1000.0, 0.0, 1000.0]])
  np.testing.assert_allclose(probabilities.sigmoid(far), [[0, 0.5, 1]])


@pytest.mark.parametrize("spec", [SPEC, BIASED], ids=["clip", "siglip"])
def test_a_saved_model_is_the_same_again(spec, tmp_path):
  before = make(spec)
  before.save(tmp_path / "model")
  after = clip_jax.load(tmp_path / "model")
  assert after.fingerprint == before.fingerprint
  assert after.probabilities == before.probabilities
  for a, b in zip(
    jax.tree.leaves(before.variables),
    jax.tree.leaves(after.variables),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  with pytest.raises(clip_jax.UserError, match="give a new path"):
    before.save(tmp_path / "model")
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_is_not_saved_to_an_empty_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # It is empty, so that it could be replaced.
  with pytest.raises(clip_jax.UserError, match="save takes the path of a new"):
    make(SPEC).save("")


def test_an_activation_that_is_given_in_vain_is_told(tmp_path, caplog):
  make(SPEC).save(tmp_path / "model")
  with pytest.raises(clip_jax.UserError, match="Unknown activation 'relu'"):
    clip_jax.load(tmp_path / "model", activation="relu")
  clip_jax.load(tmp_path / "model", activation="gelu_tanh")
  assert "activation='gelu_tanh' changed nothing" in caplog.text


def test_an_endless_name_of_no_model_is_not_repeated_whole():
  with pytest.raises(clip_jax.UserError, match="does not exist") as raised:
    clip_jax.load("a" * 5000)
  assert len(str(raised.value)) < 1000


def test_a_directory_from_before_probabilities_were_named_is_read(tmp_path):
  make(BIASED).save(tmp_path / "model")
  file = tmp_path / "model" / model_dir.DESCRIPTION
  described = json.loads(file.read_text())
  del described["spec"]["probabilities"]
  file.write_text(json.dumps(described))
  assert clip_jax.load(tmp_path / "model").probabilities == "sigmoid"


def told(caplog):
  return [r.getMessage() for r in caplog.records if "cut off" in r.getMessage()]


def test_each_call_tells_how_many_of_its_texts_were_cut(clip, caplog):
  long = "a cat and a dog and an owl and a bird"
  with caplog.at_level(logging.WARNING):
    clip.encode_text(["a cat"])
    assert told(caplog) == []
    clip.encode_text([long, "a dog", long + "s"])
    clip.encode_text([long])
    clip.classify(pixels(1), [long, "cat"])
  first, second, third = told(caplog)
  assert first.startswith("2 of 3 texts are longer than the 9 tokens")
  assert "'a cat and a dog" in first
  assert second.startswith("1 of 1 texts is longer")
  assert third.startswith("1 of 2 texts is longer")
  # The root logger would show its name, and change how a program logs.
  assert all(record.name.startswith("clip_jax.") for record in caplog.records)


@pytest.mark.parametrize("words, cut", [(6, 0), (7, 0), (8, 1), (80, 1)])
def test_a_text_that_just_fits_is_not_cut(clip, words, cut):
  rows = clip.tokenizer.rows(["cat " * words])
  assert rows.cut.tolist() == [bool(cut)]
  np.testing.assert_array_equal(rows.ids, clip.tokenize("cat " * words))


def test_the_exports_are_there_and_typed():
  import ast

  tree = ast.parse(pathlib.Path(clip_jax.__file__).read_text())
  typed = {
    name.name
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom) and node.module.startswith("clip_jax")
    for name in node.names
  }
  assert typed | {"__version__"} == set(clip_jax.__all__)
  for name in clip_jax.__all__:
    assert getattr(clip_jax, name) is not None
  assert typing.get_type_hints(clip_jax.load)["return"] is clip_jax.Clip
  assert pathlib.Path(clip_jax.__file__).with_name("py.typed").exists()


def test_a_model_of_the_hub_is_remembered_with_its_commit(
  tmp_path, monkeypatch
):
  snapshot = tmp_path / "snapshots" / "0a1b2c3d"
  make(SPEC).save(snapshot)
  monkeypatch.setattr(hub, "download", lambda address: snapshot)
  clip = clip_jax.load("hf-hub:org/name")
  assert clip.path == "hf-hub:org/name@0a1b2c3d"
  assert clip_jax.load(clip.path).fingerprint == clip.fingerprint


GOOD = np.zeros((16, 16, 3), np.uint8)
# What people give by mistake, of which no call takes anything.
WRONG = (
  *(5, {}, {"a": 1}, [None], [[GOOD]], "a\0b", b"xx", object),
  *(np.zeros(()), np.zeros((2, 2)), np.zeros((16, 16, 3))),
  *(np.full((16, 16, 3), np.nan), np.zeros((3, 16, 16), np.uint8)),
  *(np.array([[1, None]], object), np.zeros((4, 4, 3), "M8[s]")),
  *(torch.zeros(16, 16, 3, dtype=torch.bfloat16), jnp.zeros((3, 16, 16))),
)


@pytest.mark.parametrize("value", WRONG, ids=lambda x: repr(x)[:20])
def test_what_a_call_cannot_take_is_a_user_error(clip, value):
  is_text = isinstance(value, str)
  calls = {
    "encode_image": lambda: clip.encode_image(value),
    "preprocess": lambda: clip.preprocess(value),
    "embed_images": lambda: clip.embed_images(value),
    "image_features": lambda: clip.image_features(value),
    "patch_embeddings": lambda: clip.patch_embeddings(value),
    "batch_size": lambda: clip.encode_image(GOOD, batch_size=value),
    "progress": lambda: clip.encode_image(GOOD, progress=value),
    "probabilities": lambda: clip.classify(GOOD, ["a"], probabilities=value),
    "templates": lambda: clip.classify(GOOD, ["a"], templates=value),
    "cuts": lambda: clip.tokenize("a", cuts=value),
    "class_embeddings": lambda: clip.class_embeddings(value),
    "scores_of": lambda: clip.scores_of(value),
    "check_towers": lambda: clip.check_towers(value),
    "save": lambda: clip.save(value),
    "load": lambda: clip_jax.load(value),
    "create_model": lambda: clip_jax.create_model(value),
    "source_format": lambda: clip_jax.load(".", source_format=value),
    "Preprocess": lambda: clip_jax.Preprocess(
      image_size=value, mean=(0, 0, 0), std=(1, 1, 1)
    ),
    "mean": lambda: clip_jax.Preprocess(
      image_size=9, mean=value, std=(1, 1, 1)
    ),
    "interpolation": lambda: dataclasses.replace(
      clip.preprocess, interpolation=value
    ),
    **(
      {}
      if is_text
      else {
        "encode_text": lambda: clip.encode_text(value),
        "tokenizer": lambda: clip.tokenizer(value),
      }
    ),
  }
  if callable(value):
    del calls["progress"]
  if isinstance(value, int):
    del calls["batch_size"], calls["Preprocess"]
  for name, call in calls.items():
    try:
      call()
    except clip_jax.UserError:
      continue
    except Exception as error:
      pytest.fail(f"{name}: {error!r}")
    pytest.fail(f"{name} takes {value!r}")


def test_any_function_may_prepare_images(clip):
  want = clip.encode_image(pixels())
  by_hand = dataclasses.replace(clip, preprocess=lambda x: clip.preprocess(x))
  np.testing.assert_array_equal(by_hand.encode_image(pixels()), want)
  got = jax.jit(by_hand.encode_image)(pixels())
  np.testing.assert_allclose(got, want, atol=2e-6)
  np.testing.assert_array_equal(
    clip.encode_image(pixels(), progress=None), want
  )


@pytest.mark.parametrize("ids", ["a", [1.5], None, [[1], [2, 3]], object()])
def test_only_whole_numbers_are_decoded(clip, ids):
  with pytest.raises(clip_jax.UserError, match="whole numbers"):
    clip.tokenizer.decode(ids)


def test_an_error_of_the_user_s_own_generator_is_not_hidden(clip):
  def images():
    yield GOOD
    raise RuntimeError("mine")

  for call in (clip.encode_image, clip.encode):
    with pytest.raises(RuntimeError, match="mine"):
      call(images())


@pytest.mark.parametrize("there", ["image", "text"])
def test_the_tower_that_a_model_lacks_is_named_by_every_use(clip, there):
  lacking = {"image": "tokenizer", "text": "preprocess"}[there]
  one = dataclasses.replace(clip, **{lacking: None}, path="/a/b")
  one = dataclasses.replace(one, step=3)  # What is lacking stays so.
  uses = [lambda: getattr(one, lacking)("a"), lambda: getattr(one, lacking).x]
  if there == "text":
    uses += [
      lambda: one.encode_image(GOOD),
      lambda: one.embed_images(GOOD[None]),
      lambda: one.image_features(GOOD[None]),
      lambda: one.patch_embeddings(GOOD[None]),
    ]
  else:
    uses += [lambda: one.encode_text("a"), lambda: one.tokenize("a")]
  uses += [
    lambda: one.similarity(GOOD, "a"),
    lambda: one.classify(GOOD, ["a"]),
    lambda: one.patch_similarity(GOOD, "a"),
    one.for_evaluation,
  ]
  for use in uses:
    with pytest.raises(clip_jax.UserError, match=f"/a/b has only the {there}"):
      use()
  assert not hasattr(getattr(one, lacking), "x")
  kept = pickle.loads(pickle.dumps(one))
  assert not getattr(kept, lacking) and "Clip(" in repr(kept)


def test_labels_and_templates_may_be_paths(clip, tmp_path):
  labels, templates = tmp_path / "labels.txt", tmp_path / "templates.txt"
  labels.write_text("cat\ndog\n")
  templates.write_text("one {}\n")
  got = clip.classify(GOOD, labels, templates=templates)
  want = clip.classify(GOOD, ["cat", "dog"], templates=["one {}"])
  np.testing.assert_array_equal(got, want)
  several = clip.classify(GOOD, ["cat"], templates=np.array(["a {}", "{}"]))
  want = clip.classify(GOOD, ["cat"], templates=["a {}", "{}"])
  np.testing.assert_array_equal(several, want)
  # A path is never a label by itself.
  missing = pathlib.Path("labels")
  with pytest.raises(clip_jax.UserError, match="'labels' does not exist"):
    clip.classify(GOOD, missing)
  with pytest.raises(clip_jax.UserError, match="'labels' does not exist"):
    clip.classify(GOOD, ["a"], templates=missing)
