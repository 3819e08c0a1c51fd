"""The losses of whole arrays, and what they say to wrong arguments."""

import functools
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors, losses, names, sharding


@pytest.mark.parametrize("method", losses.METHODS)
def test_whole_arrays_are_split_over_the_mesh(tools, method):
  arrays = *tools.make_pairs(0.5, dtype=np.float32), 14.3, -10.0
  mesh = sharding.make_mesh(data=2, fsdp=4)
  ids = tools.make_ids()
  for kind in losses.KINDS:
    want, _ = tools.dense(kind, arrays, duplicates="mask", ids=ids)
    loss = functools.partial(
      losses.KINDS[kind],
      method=method,
      mesh=mesh,
      axes=sharding.BATCH_AXES,
      duplicates="mask",
    )
    got = jax.jit(loss)(*arrays, image_ids=ids[0], text_ids=ids[1])
    assert tools.relative(got, want) < 1e-6


def test_ids_change_nothing_unless_asked_to(tools):
  arrays = *tools.make_pairs(0.5), jnp.float32(14.3)
  ids = dict(zip(("image_ids", "text_ids"), tools.make_ids(), strict=True))
  plain = losses.softmax_loss(*arrays)
  assert losses.softmax_loss(*arrays, **ids) == plain
  assert losses.softmax_loss(*arrays, **ids, duplicates="mask") < plain


def test_a_shuffled_text_order_changes_the_loss(tools):
  images, texts = tools.make_pairs(0.9)
  good = losses.softmax_loss(images, texts, jnp.float32(10))
  bad = losses.softmax_loss(images, texts[::-1], jnp.float32(10))
  assert bad > good + 1


def test_equal_embeddings_give_the_log_of_the_batch(tools):
  same = np.ones((tools.pairs, tools.embed), np.float32) / tools.embed**0.5
  loss = losses.softmax_loss(same, same, jnp.float32(100))
  # 1e-7 of a cosine, times the scale.
  np.testing.assert_allclose(loss, np.log(tools.pairs), rtol=1e-5)


def test_a_softmax_does_not_see_the_bias(tools):
  images, texts = tools.make_pairs(0.5)
  want = losses.softmax_loss(images, texts, jnp.float32(10))
  got = losses.softmax_loss(images, texts, jnp.float32(10), jnp.float32(-10))
  assert got == want


def test_a_sigmoid_without_a_bias_says_which_field_gives_one(tools):
  images, texts = tools.make_pairs(0.5)
  with pytest.raises(errors.UserError, match="init_logit_bias=-10"):
    losses.sigmoid_loss(images, texts, jnp.float32(1), None)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"method": "gatherd"}, "Did you mean 'gathered'"),
    ({"duplicates": "masked"}, "Did you mean 'mask'"),
  ],
)
def test_an_unknown_choice_names_the_close_one(tools, options, message):
  images, texts = tools.make_pairs(0.5)
  with pytest.raises(errors.UserError, match=message):
    losses.softmax_loss(images, texts, jnp.float32(1), **options)


def test_an_axis_that_the_mesh_has_not_names_those_it_has(tools):
  images, texts = tools.make_pairs(0.5)
  axes = {"mesh": sharding.make_mesh(), "axes": ("date",)}
  with pytest.raises(errors.UserError, match=r"axis 'date'.* mean 'data'"):
    losses.softmax_loss(images, texts, jnp.float32(1), **axes)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda i, t, ids: (i, t[:1], ids), r"got \(24, 7\) and \(1, 7\)"),
    (lambda i, t, ids: (i, t[:, :3], ids), r"got \(24, 7\) and \(24, 3\)"),
    (lambda i, t, ids: (i[:0], t[:0], ids[:0]), "at least one pair"),
    (lambda i, t, ids: (i, t, ids[:1]), r"image_ids .* got \(1,\)"),
    (lambda i, t, ids: (i[:4], t[:4], ids[:4]), "4 pairs .* the 8 devices"),
  ],
)
def test_shapes_that_do_not_belong_together_are_refused(tools, change, message):
  images, texts, ids = change(*tools.make_pairs(0.5), tools.make_ids()[0])
  with pytest.raises(errors.UserError, match=message):
    losses.softmax_loss(
      images,
      texts,
      jnp.float32(1),
      mesh=sharding.make_mesh(),
      axes=sharding.BATCH_AXES,
      duplicates="mask",
      image_ids=ids,
    )


def test_an_unknown_kind_names_the_close_one():
  with pytest.raises(errors.UserError, match="Did you mean 'softmax'"):
    losses.local_loss("sofmax")


def test_the_config_knows_every_choice():
  assert names.LOSS_METHODS == losses.METHODS
  assert set(names.LOSS_KINDS) == set(losses.KINDS)
  assert names.DUPLICATES == losses.DUPLICATES


def test_readme_quotes_the_reference():
  source = inspect.getsource(losses.reference.softmax)
  head, _, body = source.split('"""')
  readme = pathlib.Path(__file__).parents[2] / "README.md"
  assert head.rstrip(" ") + body.lstrip("\n") in readme.read_text()
