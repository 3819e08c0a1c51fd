import math

import jax
import numpy as np
import pytest
import torch

from clip_jax import errors
from clip_jax.convert import engine, portable, positions
from clip_jax.convert import report as report_lib
from clip_jax.convert.tensor import Tensor

BAR = 1e-12  # Float64 against float64, numbers of about 1.
# Rows and cols of the old and the new grid: larger, smaller, both, one cell.
GRIDS = {
  "up": ((14, 14), (24, 24)),
  "down": ((24, 24), (7, 7)),
  "mixed": ((14, 14), (12, 20)),
  "oblong": ((9, 16), (16, 5)),
  "one": ((5, 5), (1, 1)),
  "from one": ((1, 1), (3, 3)),
  "same": ((6, 6), (6, 6)),
}
TORCH = {
  "bicubic_antialias": {"mode": "bicubic", "antialias": True},
  "bicubic": {"mode": "bicubic", "antialias": False},
  "bilinear_antialias": {"mode": "bilinear", "antialias": True},
  "bilinear": {"mode": "bilinear", "antialias": False},
  "align_corners": {"mode": "bilinear", "align_corners": True},
}
JAX = {
  "bicubic_antialias": {"method": "cubic", "antialias": True},
  "bilinear_antialias": {"method": "linear", "antialias": True},
  "bilinear": {"method": "linear", "antialias": False},
}


def _grid(shape, dtype=np.float64):
  rng = np.random.default_rng(3)
  return rng.standard_normal((*shape, 5)).astype(dtype)


def _run_torch(grid, new, method):
  x = torch.from_numpy(grid).permute(2, 0, 1)[None]
  x = torch.nn.functional.interpolate(x, new, **TORCH[method])
  return x[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("method", TORCH)
def test_a_method_is_torchs_in_float64(method, grids):
  old, new = GRIDS[grids]
  got = positions.resize_grid(_grid(old), new, method)
  want = _run_torch(_grid(old), new, method)
  np.testing.assert_allclose(got, want, rtol=0, atol=BAR)


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("method", JAX)
def test_a_method_is_jax_image_resize(method, grids):
  old, new = GRIDS[grids]
  with jax.enable_x64(True):
    want = jax.image.resize(_grid(old), (*new, 5), **JAX[method])
  got = positions.resize_grid(_grid(old), new, method)
  np.testing.assert_allclose(got, want, rtol=0, atol=BAR)


@pytest.mark.parametrize("grids", GRIDS)
def test_align_corners_is_scipys_zoom_of_order_one(grids):
  ndimage = pytest.importorskip("scipy.ndimage")
  old, new = GRIDS[grids]
  zoom = [b / a for a, b in zip(old, new, strict=True)]
  want = ndimage.zoom(_grid(old), (*zoom, 1), order=1)
  got = positions.resize_grid(_grid(old), new, "align_corners")
  np.testing.assert_allclose(got, want, rtol=0, atol=BAR)


def test_no_two_methods_are_alike():
  results = [
    positions.resize_grid(_grid((14, 14)), (9, 9), method)
    for method in positions.METHODS
  ]
  for i, a in enumerate(results):
    for b in results[:i]:
      assert np.abs(a - b).max() > 0.05


TEXT = {"kind": "cbow", "context_length": 7, "vocab_size": 11, "width": 6}
IMAGES = {
  "vit": {
    "kind": "vit",
    "image_size": 20,
    "patch_size": 5,
    "width": 8,
    "depth": 1,
    "heads": 2,
  },
  "gap": {
    "kind": "vit",
    "image_size": 23,
    "patch_size": 5,
    "width": 8,
    "depth": 1,
    "heads": 2,
    "class_token": False,
    "pooling": "gap",
    "drop_edge": True,
  },
  "resnet": {
    "kind": "resnet",
    "image_size": 32,
    "width": 16,
    "depths": (1, 1),
  },
}


def _model(name, dtype=np.float32):
  spec = engine.resolve({"embed_dim": 10, "image": IMAGES[name], "text": TEXT})
  rng = np.random.default_rng(0)
  leaves = {
    path: Tensor.from_array(np.asarray(rng.standard_normal(shape), dtype))
    for path, shape in engine.leaf_shapes(spec).items()
  }
  return portable.Portable(
    spec=spec, leaves=leaves, report=report_lib.Report("test")
  )


@pytest.mark.parametrize(
  ("name", "image_size", "class_rows", "old", "new"),
  [
    ("vit", 35, 1, (4, 4), (7, 7)),
    ("vit", 10, 1, (4, 4), (2, 2)),
    ("gap", 34, 0, (4, 4), (6, 6)),
    ("resnet", 48, 1, (4, 4), (6, 6)),
  ],
)
def test_a_model_is_resized_in_one_array_alone(
  name, image_size, class_rows, old, new
):
  was = _model(name)
  becomes = positions.resize(was, image_size, "bicubic")
  assert becomes.spec["image"]["image_size"] == image_size
  shapes = engine.leaf_shapes(becomes.spec)
  changed = [p for p in shapes if becomes.leaves[p] is not was.leaves[p]]
  assert len(changed) == 1
  (path,) = changed
  assert path.endswith("position_embedding")
  before, after = was.leaves[path].read(), becomes.leaves[path].read()
  assert after.shape == shapes[path] == becomes.leaves[path].shape
  assert after.dtype == before.dtype == np.float32
  np.testing.assert_array_equal(after[:class_rows], before[:class_rows])
  want = _run_torch(
    before[class_rows:].astype(np.float64).reshape(*old, -1), new, "bicubic"
  )
  np.testing.assert_array_equal(
    after[class_rows:], want.reshape(math.prod(new), -1).astype(np.float32)
  )


def test_what_was_resized_is_on_record():
  model = positions.resize(_model("vit"), 30, "align_corners")
  assert model.source["resized"] == {
    "method": "align_corners",
    "old_image_size": 20,
    "new_image_size": 30,
    "old_grid": [4, 4],
    "new_grid": [6, 6],
  }
  assert model.report.facts["resized"] == model.source["resized"]
  assert model.report.inferred["image.image_size"] == {
    "value": 30,
    "source": "flag",
  }


@pytest.mark.parametrize(
  ("name", "image_size", "method", "message"),
  [
    ("vit", 33, "bicubic", "multiple of 5.*size of patches cannot.*Try 35"),
    ("vit", 2, "bicubic", "multiple of 5"),
    ("resnet", 33, "bicubic", "multiple of 8"),
    ("vit", 30, "bicubik", "Unknown resize method.*Did you mean 'bicubic'"),
  ],
)
def test_what_cannot_be_resized_is_said(name, image_size, method, message):
  with pytest.raises(errors.UserError, match=message):
    positions.resize(_model(name), image_size, method)


def test_positions_that_make_no_square_need_their_grid():
  assert positions.old_grid(49) == (7, 7)
  assert positions.old_grid(36, (4, 9)) == (4, 9)
  with pytest.raises(errors.UserError, match="--old-grid"):
    positions.old_grid(48)
  with pytest.raises(errors.UserError, match=r"6x9 has 54 patches.* 48"):
    positions.old_grid(48, (6, 9))
