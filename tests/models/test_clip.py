import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import torch_names
from clip_jax.models import clip, variants

END = 36
# Sizes differ pairwise, so that no swapped axis goes unseen.
SPEC = {
  "embed_dim": 18,
  "image": {
    "kind": "vit",
    "image_size": 12,
    "patch_size": 4,
    "width": 24,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 40,
  },
  "text": {
    "kind": "transformer",
    "context_length": 7,
    "vocab_size": END + 1,
    "width": 20,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 28,
  },
}
# Both sides compute in float64, where only the order of sums differs; a wrong
# epsilon or activation changes the result by 1e-4 and more.
TOLERANCE = 1e-12


def torch_tensors(params):
  """Names and lays out our parameters as transformers' CLIPModel does."""
  tensors = {"logit_scale": params["log_scale"]}
  for ours, theirs, norms in (
    ("image", "vision_model", ("pre_layrnorm", "post_layernorm")),
    ("text", "text_model", (None, "final_layer_norm")),
  ):
    tower = params[ours]
    names = ("ln_pre", "ln_post") if ours == "image" else (None, "ln_final")
    for our_norm, their_norm in zip(names, norms, strict=True):
      if our_norm:
        tensors |= torch_names.norm(f"{theirs}.{their_norm}", tower[our_norm])
    tensors[f"{theirs}.embeddings.position_embedding.weight"] = tower[
      "position_embedding"
    ]
    tensors |= torch_names.encoder(theirs, tower["encoder"]["blocks"])
  image, text = params["image"], params["text"]
  tensors |= {
    "text_model.embeddings.token_embedding.weight": text["token_embedding"][
      "embedding"
    ],
    "vision_model.embeddings.class_embedding": image["class_embedding"],
    "vision_model.embeddings.patch_embedding.weight": image[
      "patch_kernel"
    ].transpose(3, 2, 0, 1),
    "visual_projection.weight": params["image_projection"]["kernel"].T,
    "text_projection.weight": params["text_projection"]["kernel"].T,
  }
  return {name: np.array(value) for name, value in tensors.items()}


def torch_model(params, *, activation="quick_gelu", epsilon=1e-5):
  image, text = SPEC["image"], SPEC["text"]
  both = {"hidden_act": activation, "layer_norm_eps": epsilon}
  config = transformers.CLIPConfig(
    projection_dim=SPEC["embed_dim"],
    vision_config=torch_names.tower_config(
      image, image_size=12, patch_size=4, **both
    ),
    text_config=torch_names.tower_config(
      text,
      vocab_size=END + 1,
      max_position_embeddings=7,
      eos_token_id=END,
      **both,
    ),
  )
  model = transformers.CLIPModel._from_config(
    config, attn_implementation="sdpa"
  ).double()
  state = {
    name: torch.from_numpy(value)
    for name, value in torch_tensors(params).items()
  }
  model.load_state_dict(state, strict=True)
  return model


def make_inputs(dtype=np.float64):
  rng = np.random.default_rng(3)
  images = rng.standard_normal((4, 12, 12, 3)).astype(dtype)
  tokens = rng.integers(1, END, (5, 7)).astype(np.int32)
  for row, end in enumerate((1, 6, 3, 4, 2)):
    tokens[row, end] = END
    tokens[row, end + 1 :] = 0
  tokens[2, 5] = END  # Only the first end-of-text counts.
  return images, tokens


def make_params(make_variables, dtype=np.float64):
  model = variants.create_model(SPEC)
  inputs = make_inputs(np.float32)
  return make_variables(model, *inputs, dtype=dtype)["params"]


def torch_embeds(params, images, tokens, **fields):
  model = torch_model(params, **fields)
  output = model(
    pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
    input_ids=torch.from_numpy(tokens).long(),
  )
  return model, output.image_embeds, output.text_embeds


def test_float64_embeddings_and_gradients_match_pytorch(make_variables):
  images, tokens = make_inputs()
  rng = np.random.default_rng(5)
  image_weights = rng.standard_normal((4, 18))
  text_weights = rng.standard_normal((5, 18))
  params = make_params(make_variables)
  reference, image_embeds, text_embeds = torch_embeds(params, images, tokens)
  (
    (image_embeds * torch.from_numpy(image_weights)).sum()
    + (text_embeds * torch.from_numpy(text_weights)).sum()
    + reference.logit_scale.exp()
  ).backward()

  with jax.enable_x64(True):
    model = variants.create_model(
      SPEC, dtype=jnp.float64, param_dtype=jnp.float64
    )

    def weighted(params):
      output = model.apply({"params": params}, images, tokens)
      value = (output.image_embeds * image_weights).sum()
      value += (output.text_embeds * text_weights).sum()
      return value + output.logit_scale, output

    grads, output = jax.jit(jax.grad(weighted, has_aux=True))(params)
    grads, output = jax.tree.map(np.asarray, (grads, output))

  assert output.image_embeds.dtype == np.float64
  want = image_embeds.detach().numpy()
  assert torch_names.relative_error(output.image_embeds, want) < TOLERANCE
  want = text_embeds.detach().numpy()
  assert torch_names.relative_error(output.text_embeds, want) < TOLERANCE
  want = {
    name: value.grad.numpy() for name, value in reference.named_parameters()
  }
  got = torch_tensors(grads)
  assert got.keys() == want.keys()
  # A key's bias moves all scores of a query alike: its gradient is zero but
  # for rounding, so errors are relative to the largest gradient of all.
  largest = max(np.abs(value).max() for value in want.values())
  for name, value in want.items():
    scale = np.abs(value).max()
    scale = largest if scale < 1e-9 * largest else scale
    assert np.abs(got[name] - value).max() < TOLERANCE * scale, name


@pytest.mark.parametrize(
  "mutation", [{"activation": "gelu"}, {"epsilon": 1e-6}]
)
def test_the_parity_tolerance_sees_a_wrong_field(
  make_variables, apply, mutation
):
  images, tokens = make_inputs()
  params = make_params(make_variables)
  _, image_embeds, text_embeds = torch_embeds(
    params, images, tokens, **mutation
  )
  with jax.enable_x64(True):
    model = variants.create_model(
      SPEC, dtype=jnp.float64, param_dtype=jnp.float64
    )
    output = jax.tree.map(
      np.asarray, apply(model, {"params": params}, images, tokens)
    )
  for got, want in (
    (output.image_embeds, image_embeds),
    (output.text_embeds, text_embeds),
  ):
    assert (
      torch_names.relative_error(got, want.detach().numpy()) > 1e6 * TOLERANCE
    )


def test_bytes_give_the_same_as_normalised_floats(make_variables, apply):
  model = variants.create_model(SPEC)
  params = make_params(make_variables, np.float32)
  images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8)
  mean, std = np.array(model.image_mean), np.array(model.image_std)
  normalised = ((images / 255 - mean) / std).astype(np.float32)

  def embed(images):
    return apply(model, {"params": params}, images, method="encode_image")

  # The normalisation rounds once or twice in float32, the towers do the rest.
  np.testing.assert_allclose(embed(images), embed(normalised), atol=1e-6)
  assert np.abs(embed(images) - embed(images[..., ::-1])).max() > 1e-2


def test_the_scale_is_what_the_parameter_says(make_variables):
  model = variants.create_model(SPEC)
  inputs = make_inputs(np.float32)
  params = make_params(make_variables, np.float32)
  run = jax.jit(model.apply)

  def scale(log_scale):
    changed = {**params, "log_scale": jnp.float32(log_scale)}
    return run({"params": changed}, *inputs).logit_scale

  # Beyond 100 too: only training keeps to the bound.
  for log_scale in (4.0, 9.0):
    np.testing.assert_allclose(scale(log_scale), np.exp(log_scale), rtol=1e-6)


def test_embeddings_have_unit_length_and_encode_as_the_call_does(
  make_variables, apply
):
  model = variants.create_model(SPEC)
  variables = {"params": make_params(make_variables, np.float32)}
  images, tokens = make_inputs(np.float32)
  output = apply(model, variables, images, tokens)
  assert isinstance(output, clip.ClipOutput)
  for embeds, encode, inputs in (
    (output.image_embeds, "encode_image", images),
    (output.text_embeds, "encode_text", tokens),
  ):
    # One rounding of float32 for a component, a few for their sum.
    np.testing.assert_allclose(
      jnp.linalg.norm(embeds, axis=-1), np.ones(len(inputs)), rtol=1e-6
    )
    alone = apply(model, variables, inputs, method=encode)
    np.testing.assert_allclose(alone, embeds, atol=1e-6)


def operand_types(jaxpr, names):
  """Yields (primitive, operand types) of the named primitives, all depths."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in names:
      yield (
        equation.primitive.name,
        {v.aval.dtype for v in equation.invars if v.aval.ndim},
      )
    for value in equation.params.values():
      for item in value if isinstance(value, tuple | list) else (value,):
        item = getattr(item, "jaxpr", item)
        if hasattr(item, "eqns"):
          yield from operand_types(item, names)


def test_bfloat16_multiplies_narrow_and_normalises_wide(make_variables, apply):
  model = variants.create_model(SPEC, dtype=jnp.bfloat16)
  inputs = make_inputs(np.float32)
  variables = make_variables(model, *inputs, scale=0.1)
  jaxpr = jax.make_jaxpr(model.apply)(variables, *inputs).jaxpr
  found = list(operand_types(jaxpr, {"dot_general", "exp", "rsqrt"}))
  types = {
    name: [types for other, types in found if other == name]
    for name, _ in found
  }
  narrow, wide = {jnp.dtype("bfloat16")}, {jnp.dtype("float32")}
  assert all(operands == narrow for operands in types["dot_general"])
  # Softmax and layer norm; the temperature's exponential is a scalar.
  assert all(operands <= wide for operands in types["exp"])
  assert all(operands == wide for operands in types["rsqrt"])
  output = apply(model, variables, *inputs)
  assert output.image_embeds.dtype == jnp.float32
  exact = apply(variants.create_model(SPEC), variables, *inputs)
  # bfloat16 keeps 8 bits: 0.4 % a rounding, over 18 components and 3 layers.
  assert (
    torch_names.relative_error(output.image_embeds, exact.image_embeds) < 0.05
  )
  shapes = variants.abstract_variables(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == wide
