import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_jax import errors
from clip_jax.models import batch_norm, resnet

DEPTHS = (2, 1)
WIDTH, EMBED, SIZE, BATCH = 16, 13, 24, 3
# Both sides compute in float64; only the order of sums differs.
TOLERANCE = 1e-12


def make_tower(**fields):
  given = {"dtype": jnp.float64, "param_dtype": jnp.float64, "depths": DEPTHS}
  return resnet.ModifiedResNet(
    image_size=SIZE, width=WIDTH, embed_dim=EMBED, **given | fields
  )


class Oracle:
  """The paper's ResNet by torch's functions, on our parameters."""

  def __init__(self, variables, *, train):
    def leaves(tree):
      return jax.tree.map(lambda leaf: torch.tensor(np.array(leaf)), tree)

    self.params = leaves(variables["params"])
    for leaf in jax.tree.leaves(self.params):
      leaf.requires_grad_(True)
    self.stats = leaves(variables["batch_stats"])
    self.train = train

  def conv_norm(self, x, params, stats, *, stride=1):
    kernel = params["conv"]["kernel"].permute(3, 2, 0, 1)
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    return F.batch_norm(
      x,
      stats["norm"]["mean"],
      stats["norm"]["var"],
      params["norm"]["scale"],
      params["norm"]["bias"],
      training=self.train,
      momentum=0.1,
      eps=1e-5,
    )

  def bottleneck(self, x, name, stride):
    params, stats = self.params[name], self.stats[name]
    y = F.relu(self.conv_norm(x, params["conv_1"], stats["conv_1"]))
    y = F.relu(self.conv_norm(y, params["conv_2"], stats["conv_2"]))
    y = self.conv_norm(
      F.avg_pool2d(y, stride), params["conv_3"], stats["conv_3"]
    )
    if "downsample" in params:
      x = F.avg_pool2d(x, stride)
      x = self.conv_norm(x, params["downsample"], stats["downsample"])
    return F.relu(x + y)

  def attention_pool(self, x):
    pool = self.params["attention_pool"]
    attention = pool["attention"]
    x = x.flatten(2).permute(2, 0, 1)  # (h * w, batch, features)
    x = torch.cat([x.mean(dim=0, keepdim=True), x])
    x = x + pool["position_embedding"][:, None]
    features = x.shape[-1]
    weights = [
      attention[name]["kernel"].reshape(features, features).T
      for name in ("query", "key", "value")
    ]
    biases = [
      attention[name]["bias"].reshape(features)
      for name in ("query", "key", "value")
    ]
    out, _ = F.multi_head_attention_forward(
      query=x[:1],
      key=x,
      value=x,
      embed_dim_to_check=features,
      num_heads=features // 64,
      in_proj_weight=None,
      in_proj_bias=torch.cat(biases),
      bias_k=None,
      bias_v=None,
      add_zero_attn=False,
      dropout_p=0.0,
      out_proj_weight=attention["out"]["kernel"].reshape(features, EMBED).T,
      out_proj_bias=attention["out"]["bias"],
      use_separate_proj_weight=True,
      q_proj_weight=weights[0],
      k_proj_weight=weights[1],
      v_proj_weight=weights[2],
    )
    return out[0]

  def __call__(self, images):
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for i, stride in ((1, 2), (2, 1), (3, 1)):
      name = f"stem_{i}"
      x = F.relu(
        self.conv_norm(x, self.params[name], self.stats[name], stride=stride)
      )
    x = F.avg_pool2d(x, 2)
    x = self.bottleneck(x, "stage_1_block_1", 1)
    x = self.bottleneck(x, "stage_1_block_2", 1)
    x = self.bottleneck(x, "stage_2_block_1", 2)
    return self.attention_pool(x)


def make_case(make_variables):
  images = np.random.default_rng(0).standard_normal((BATCH, SIZE, SIZE, 3))
  tower = make_tower(dtype=jnp.float32, param_dtype=jnp.float32)
  return images, make_variables(tower, jnp.float32(images), dtype=np.float64)


def assert_close(got, want):
  want = want.detach().numpy()
  largest = np.abs(want).max()
  assert np.abs(np.asarray(got) - want).max() < TOLERANCE * largest


@pytest.mark.parametrize(
  ("train", "remat"),
  [(False, "none"), (True, "none"), (True, "full"), (True, "nested")],
)
def test_float64_features_statistics_and_gradients_match_torch(
  train, remat, make_variables
):
  images, variables = make_case(make_variables)
  weights = np.random.default_rng(1).standard_normal((BATCH, EMBED))
  oracle = Oracle(variables, train=train)
  want = oracle(images)
  (want * torch.from_numpy(weights)).sum().backward()

  with jax.enable_x64(True):
    tower = make_tower(remat=remat)

    def weighted(params):
      features, state = tower.apply(
        {**variables, "params": params},
        images,
        train=train,
        mutable=["batch_stats"],
      )
      return (features * weights).sum(), (features, state)

    grads, (features, state) = jax.jit(jax.grad(weighted, has_aux=True))(
      variables["params"]
    )
    features = np.asarray(features)

  assert features.dtype == np.float64
  assert features.shape == (BATCH, EMBED)
  assert_close(features, want)
  jax.tree.map(assert_close, state["batch_stats"], oracle.stats)
  # In training a convolution's scale cancels and gradients nearly do, in a
  # key's bias entirely: errors are relative to the largest gradient of all.
  largest = max(
    float(leaf.grad.abs().max()) for leaf in jax.tree.leaves(oracle.params)
  )
  jax.tree.map(
    lambda got, leaf: np.testing.assert_allclose(
      got, leaf.grad.numpy(), rtol=0, atol=1e-11 * largest
    ),
    grads,
    oracle.params,
  )


LOCKED_IN_ALL = tuple(f"stage_1_block_{j}/conv_2/norm" for j in range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("remat", "train", "locked_norms"),
  [
    ("nested", True, ()),
    ("none", True, ()),
    ("none", False, ()),
    ("full", True, LOCKED_IN_ALL),
    ("full", True, ("stage_1_block_3/conv_2/norm",)),
  ],
)
def test_blocks_in_a_loop_compute_the_same(
  remat, train, locked_norms, make_variables
):
  images = np.random.default_rng(0).standard_normal((BATCH, SIZE, SIZE, 3))
  # Five blocks after the first are a loop, in groups of three and two.
  depths = (6, 2)
  tower = make_tower(dtype=jnp.float32, param_dtype=jnp.float32, depths=depths)
  variables = make_variables(tower, jnp.float32(images), dtype=np.float64)
  weights = np.random.default_rng(1).standard_normal((BATCH, EMBED))

  def run(**fields):
    tower = make_tower(depths=depths, **fields)

    def weighted(params):
      features, state = tower.apply(
        {**variables, "params": params},
        images,
        train=train,
        locked_norms=locked_norms,
        mutable=["batch_stats"],
      )
      return (features * weights).sum(), (features, state["batch_stats"])

    return jax.jit(jax.grad(weighted, has_aux=True))(variables["params"])

  with jax.enable_x64(True):
    want, got = run(), run(scan=True, remat=remat)
    assert jax.tree.structure(want) == jax.tree.structure(got)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-11, atol=1e-12 * largest
      ),
      want,
      got,
    )


def test_a_loop_copies_kernels_in_the_type_that_they_are_used_in():
  images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.bfloat16)
  tower = make_tower(
    dtype=jnp.bfloat16, param_dtype=jnp.float32, depths=(6,), scan=True
  )
  variables = jax.eval_shape(tower.init, jax.random.key(0), images)
  program = str(jax.make_jaxpr(tower.apply)(variables, images))
  kernels = f"[5,3,3,{WIDTH},{WIDTH}]"
  assert f"bf16{kernels}" in program
  assert f"f32{kernels}" not in program
  assert f"f32[5,{WIDTH}]" in program  # Gains and statistics stay wide.


def test_a_loop_is_as_long_to_compile_for_more_blocks():
  images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)

  def convolutions(scan, depth):
    tower = make_tower(
      dtype=jnp.float32, param_dtype=jnp.float32, depths=(depth,), scan=scan
    )
    variables = jax.eval_shape(tower.init, jax.random.key(0), images)
    program = jax.make_jaxpr(tower.apply)(variables, images)
    return str(program).count("conv_general_dilated[")

  assert convolutions(False, 9) == convolutions(False, 5) + 4
  assert convolutions(True, 9) == convolutions(True, 5)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_keeps_less_for_the_backward_pass(scan):
  images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)

  def kept(remat):
    tower = make_tower(
      dtype=jnp.float32,
      param_dtype=jnp.float32,
      depths=(10,),
      remat=remat,
      scan=scan,
    )
    variables = jax.eval_shape(tower.init, jax.random.key(0), images)

    def features(variables, images):
      return tower.apply(
        variables, images, train=True, mutable=["batch_stats"]
      )[0]

    def size(tree):
      return sum(leaf.size for leaf in jax.tree.leaves(tree))

    # What the transposed function closes over; the parameters in any case.
    backward = jax.eval_shape(
      lambda *given: jax.vjp(features, *given)[1], variables, images
    )
    return size(backward) - size(variables)

  assert kept("full") < 0.5 * kept("none")
  # A loop keeps a copy of its kernels, too.
  assert kept("nested") < (0.6 if scan else 0.5) * kept("full")


def test_the_tolerance_sees_a_biased_running_variance(make_variables):
  images, variables = make_case(make_variables)
  oracle = Oracle(variables, train=True)
  oracle(images)
  before = variables["batch_stats"]["stem_1"]["norm"]["var"]
  after = oracle.stats["stem_1"]["norm"]["var"].numpy()
  count = BATCH * (SIZE // 2) ** 2
  biased = before * 0.9 + (after - before * 0.9) * (count - 1) / count
  assert np.abs(biased - after).max() > 1e6 * TOLERANCE * after.max()


def test_training_normalises_by_the_batch_and_evaluation_does_not(
  make_variables, apply
):
  images, variables = make_case(make_variables)
  images = jnp.float32(images)
  tower = make_tower(dtype=jnp.float32, param_dtype=jnp.float32)
  variables = jax.tree.map(jnp.float32, variables)
  alone = apply(tower, variables, images[:1])
  # Evaluation treats rows one by one, but for the order of sums.
  np.testing.assert_allclose(
    apply(tower, variables, images)[:1], alone, rtol=1e-4, atol=1e-4
  )
  trained, _ = apply(
    tower, variables, images, train=True, mutable=["batch_stats"]
  )
  other, _ = apply(
    tower, variables, images[:2], train=True, mutable=["batch_stats"]
  )
  assert np.abs(trained[:2] - other).max() > 1e-3


def test_batch_norm_is_stable_far_from_zero(apply):
  x = np.random.default_rng(2).standard_normal((4, 3, 5, 6)) + 300.0
  x = x.astype(np.float32)
  norm = batch_norm.BatchNorm()
  variables = norm.init(jax.random.key(0), x, train=False)
  got, state = apply(norm, variables, x, train=True, mutable=["batch_stats"])
  wide = x.astype(np.float64).reshape(-1, 6)
  want = (wide - wide.mean(axis=0)) / np.sqrt(wide.var(axis=0) + 1e-5)
  # The inputs' own spacing is 3e-5; a one-pass variance errs by 1e-2.
  np.testing.assert_allclose(got.reshape(-1, 6), want, atol=2e-4)
  np.testing.assert_allclose(
    state["batch_stats"]["var"], 0.9 + 0.1 * wide.var(axis=0, ddof=1), rtol=1e-4
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"image_size": 28}, "try 24"),
    ({"image_size": 32}, r"\(batch, 32, 32, 3\)"),
    ({"width": 12}, "96 features"),
    ({"width": 1}, "width=1 must be at least 2"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
  tower = make_tower(dtype=jnp.float32, param_dtype=jnp.float32)
  with pytest.raises(errors.UserError, match=message):
    tower.clone(**fields).init(jax.random.key(0), jnp.zeros((2, SIZE, SIZE, 3)))
