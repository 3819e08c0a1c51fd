import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors
from clip_jax.models import other_families, resnet, variants

# Learned numbers of OpenAI's releases, without running statistics.
OPENAI = {
  "RN50": 102_007_137,
  "RN101": 119_688_033,
  "RN50x4": 178_300_601,
  "RN50x16": 290_979_217,
  "RN50x64": 623_258_305,
  "ViT-B-32": 151_277_313,
  "ViT-B-16": 149_620_737,
  "ViT-L-14": 427_616_513,
  "ViT-L-14-336": 427_944_193,
}

# Parameters of the torch modules that open_clip 3.3.0 builds, on torch's "meta"
# device, from its own configurations of these names (those that end in "-gelu"
# have no ending there).
OPEN_CLIP = {
  "ViT-B-32-gelu": 151_277_313,
  "ViT-B-32-256": 151_288_833,
  "ViT-B-16-gelu": 149_620_737,
  "ViT-B-16-plus-240": 208_377_345,
  "ViT-L-14-gelu": 427_616_513,
  "ViT-H-14": 986_109_441,
  "ViT-H-14-378-quickgelu": 986_714_881,
  "ViT-g-14": 1_366_678_273,
  "ViT-bigG-14": 2_539_567_105,
  "ViT-S-32": 63_085_825,
  "ViT-S-16": 62_257_537,
  "ViT-S-32-alt": 43_224_449,
  "ViT-S-16-alt": 42_396_161,
  "ViT-M-32": 103_119_873,
  "ViT-M-16": 102_015_489,
  "ViT-M-32-alt": 80_070_273,
  "ViT-B-32-plus-256": 210_297_473,
  "ViT-B-16-plus": 208_351_361,
  "ViT-L-16": 427_739_393,
  "ViT-L-16-320": 427_948_289,
  "ViT-L-14-280": 427_763_969,
  "ViT-H-16": 986_263_041,
  "ViT-H-14-378": 986_714_881,
  "ViT-e-14": 4_581_086_465,
  "ViT-L-14-CLIPA": 414_210_561,
  "ViT-L-14-CLIPA-336": 414_538_241,
  "ViT-H-14-CLIPA": 968_235_009,
  "ViT-H-14-CLIPA-336": 968_644_609,
  "ViT-bigG-14-CLIPA": 2_517_223_937,
  "ViT-bigG-14-CLIPA-336": 2_517_756_417,
  "ViT-B-16-SigLIP": 203_155_970,
  "ViT-B-16-SigLIP-256": 203_202_050,
  "ViT-B-16-SigLIP-i18n-256": 370_626_050,
  "ViT-B-16-SigLIP-384": 203_447_810,
  "ViT-B-16-SigLIP-512": 203_791_874,
  "ViT-L-16-SigLIP-256": 652_150_786,
  "ViT-L-16-SigLIP-384": 652_478_466,
  "ViT-SO400M-14-SigLIP": 877_360_306,
  "ViT-SO400M-14-SigLIP-378": 877_960_498,
  "ViT-SO400M-14-SigLIP-384": 877_960_498,
  "ViT-SO400M-16-SigLIP-i18n-256": 1_127_430_706,
  "ViT-B-32-SigLIP2-256": 376_856_066,
  "ViT-B-16-SigLIP2": 375_187_970,
  "ViT-B-16-SigLIP2-256": 375_234_050,
  "ViT-B-16-SigLIP2-384": 375_479_810,
  "ViT-B-16-SigLIP2-512": 375_823_874,
  "ViT-L-16-SigLIP2-256": 881_526_786,
  "ViT-L-16-SigLIP2-384": 881_854_466,
  "ViT-L-16-SigLIP2-512": 882_313_218,
  "ViT-SO400M-14-SigLIP2": 1_135_463_602,
  "ViT-SO400M-14-SigLIP2-378": 1_136_008_498,
  "ViT-SO400M-16-SigLIP2-256": 1_135_670_962,
  "ViT-SO400M-16-SigLIP2-384": 1_136_039_602,
  "ViT-SO400M-16-SigLIP2-512": 1_136_555_698,
  "ViT-gopt-16-SigLIP2-256": 1_871_393_906,
  "ViT-gopt-16-SigLIP2-384": 1_871_885_426,
}

# Another name, another activation.
TWINS = {
  "ViT-B-32-quickgelu": "ViT-B-32",
  "ViT-B-16-quickgelu": "ViT-B-16",
  "ViT-L-14-quickgelu": "ViT-L-14",
  "ViT-H-14-quickgelu": "ViT-H-14",
  "ViT-bigG-14-quickgelu": "ViT-bigG-14",
}


@pytest.mark.parametrize(("name", "count"), (OPENAI | OPEN_CLIP).items())
def test_models_have_their_published_parameter_counts(name, count):
  assert variants.parameter_count(variants.create_model(name)) == count


def test_every_named_model_is_counted():
  tiny = {name for name in variants.VARIANTS if name.startswith("tiny-")}
  counted = OPENAI.keys() | OPEN_CLIP.keys() | TWINS.keys()
  assert counted == variants.VARIANTS.keys() - tiny


@pytest.mark.parametrize(("name", "twin"), TWINS.items())
def test_a_twin_differs_in_nothing_but_the_activation(name, twin):
  quick, other = variants.spec(name), variants.spec(twin)
  for part in ("image", "text"):
    assert quick[part].pop("activation") == "quick_gelu"
    other[part].pop("activation")
  assert quick == other


@pytest.mark.parametrize(
  ("name", "image", "text"),
  [
    ("ViT-B-32", "quick_gelu", "quick_gelu"),
    ("ViT-B-32-gelu", "gelu", "gelu"),
    ("ViT-H-14", "gelu", "gelu"),
    ("ViT-H-14-378-quickgelu", "quick_gelu", "quick_gelu"),
    ("ViT-L-14-CLIPA", "gelu", "gelu"),
    ("ViT-B-16-SigLIP", "gelu_tanh", "gelu_tanh"),
  ],
)
def test_models_have_the_activation_that_they_were_trained_with(
  name, image, text
):
  description = variants.spec(name)
  assert description["image"]["activation"] == image
  assert description["text"]["activation"] == text


def test_a_logit_bias_brings_siglips_scale_without_a_bound():
  plain = variants.spec("tiny-vit")
  assert (plain["init_logit_bias"], plain["max_logit_scale"]) == (None, 100)
  biased = variants.spec("tiny-vit", {"init_logit_bias": -10})
  assert (biased["init_logit_scale"], biased["max_logit_scale"]) == (10, None)
  assert variants.spec(biased) == biased
  bounded = variants.spec(
    "tiny-vit", {"init_logit_bias": -10, "max_logit_scale": 50}
  )
  assert bounded["max_logit_scale"] == 50


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"image_projection": "dense"}, "Known: linear, linear_bias, mlp, none"),
    ({"image_projection": "none"}, "ends in embed_dim=64; .* 128 wide"),
    ({"embed_norm": "l3"}, "Known: l2"),
    ({"text": {"pooling": "end"}}, "Known: argmax, eos, last, map"),
    ({"text": {"pooling": "eos"}}, "eos_id=None"),
    ({"text": {"eos_id": 3}}, "pooling='argmax' with eos_id=3"),
    ({"image": {"norm_after_pool": True}}, "needs pooling='gap'"),
    ({"image": {"heads": 5}}, "width=128 must be divisible by heads=5"),
    ({"image": {"heads": 0}}, "'image.heads' must be a whole .* got 0"),
    ({"image": {"depth": -1}}, "'image.depth' must be a whole .* got -1"),
    ({"image": {"patch_size": 0}}, "'image.patch_size' must be a whole"),
    ({"image": {"depth": True}}, "'image.depth' must be a whole .* got True"),
    ({"text": {"context_length": 0}}, "'text.context_length' must be a whole"),
    ({"embed_dim": 0}, "'embed_dim' must be a whole .* got 0"),
    ({"image": {"scan": "False"}}, "'image.scan' takes true or false; got 'F"),
    ({"text": {"scan": 1}}, "'text.scan' takes true or false; got 1"),
    ({"image": {"remat": True}}, "'image.remat' is the name of a policy: 'fu"),
    ({"text": {"remat": ["full"]}}, "'text.remat' is the name of a policy"),
    ({"image": {"patch_dropout": 1.0}}, "less than 1; got 1.0"),
    ({"image": {"patch_dropout": -0.1}}, "less than 1; got -0.1"),
    ({"image": {"patch_dropout": "x"}}, "patch_dropout' takes a number; got"),
    ({"image": {"registers": -1}}, "at least 0; got -1"),
    ({"image": {"width": None}}, "takes a whole number of at least 0; got No"),
    ({"image": {"norm_epsilon": math.nan}}, "takes a number; got nan"),
    ({"text": {"norm_epsilon": -1e-5}}, "'text.norm_epsilon' must be more"),
    ({"image": {"kind": []}}, "Unknown image tower"),
    ({"text": {"causal": "no"}}, "'text.causal' takes true or false; got 'no'"),
    ({"text": {"eos_id": "x"}}, "takes a whole number of at least 0 or null"),
    ({"text_projection": []}, "'text_projection' takes a name"),
    ({"image_mean": [0.5]}, "'image_mean' takes a list of 3 numbers; got"),
    ({"image_std": (0, 1, 1)}, "'image_std' must be more than 0"),
    ({"init_logit_scale": 0}, "'init_logit_scale' must be more than 0; got 0"),
    ({"init_logit_scale": math.inf}, "'init_logit_scale' takes a number; got"),
    ({"max_logit_scale": -1}, "'max_logit_scale' must be more than 0; got -1"),
    ({"init_logit_bias": "x"}, "takes a number or null; got 'x'"),
  ],
)
def test_values_that_contradict_each_other_are_refused(overrides, message):
  with pytest.raises(errors.UserError, match=message):
    variants.abstract_variables(
      variants.create_model("tiny-vit", overrides=overrides)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit", "tiny-cbow"])
def test_tiny_models_train_on_bytes_end_to_end(name, make_variables):
  model = variants.create_model(name)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
  tokens = np.zeros((3, 16), np.int32)
  tokens[:, :3] = 49406, 320, 49407
  variables = make_variables(model, images, tokens)

  def total(params):
    output, _ = model.apply(
      {**variables, "params": params},
      images,
      tokens,
      train=True,
      mutable=["batch_stats"],
    )
    return (output.image_embeds[0] * output.text_embeds[0]).sum()

  grads = jax.jit(jax.grad(total))(variables["params"])
  assert jax.tree.all(jax.tree.map(lambda g: jnp.isfinite(g).all(), grads))
  assert np.abs(grads["text_projection"]["kernel"]).max() > 0


def test_initial_weights_have_openais_deviations():
  model = variants.create_model("tiny-vit")
  inputs = [
    jnp.zeros(x.shape, x.dtype) for x in variants.abstract_inputs(model)
  ]
  params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
  image, text = params["image"], params["text"]
  blocks = image["encoder"]["blocks"]
  for value, want in (
    (blocks["attention"]["key"]["kernel"], 128**-0.5),
    (blocks["attention"]["out"]["kernel"], (128 * 2 * 3) ** -0.5),
    (blocks["mlp"]["fc_in"]["kernel"], 256**-0.5),
    (blocks["mlp"]["fc_out"]["kernel"], (128 * 2 * 3) ** -0.5),
    (image["position_embedding"], 128**-0.5),
    (image["patch_kernel"], (3 * 8 * 8 * 3) ** -0.5),
    (text["token_embedding"]["embedding"], 0.02),
    (text["position_embedding"], 0.01),
    (params["image_projection"]["kernel"], 128**-0.5),
    (params["text_projection"]["kernel"], 64**-0.5),
  ):
    # The smallest has 1,024 numbers: its deviation errs by 2 %.
    np.testing.assert_allclose(np.std(value), want, rtol=0.1)
  np.testing.assert_allclose(jnp.exp(params["log_scale"]), 1 / 0.07, rtol=1e-6)


def test_a_residual_block_starts_without_its_branch():
  block = resnet.Bottleneck(features=16)
  params = block.init(jax.random.key(0), jnp.ones((1, 2, 2, 64)), train=False)
  scale = params["params"]["conv_3"]["norm"]["scale"]
  np.testing.assert_array_equal(scale, np.zeros(64))


def test_the_attention_pool_starts_as_openais():
  pool = resnet.AttentionPool(heads=2, out_dim=5)
  params = pool.init(jax.random.key(0), jnp.ones((1, 2, 2, 128)))["params"]
  for value in (
    params["attention"]["query"]["kernel"],
    params["attention"]["out"]["kernel"],
    params["position_embedding"],
  ):
    # The smallest has 640 numbers: its deviation errs by 3 %.
    np.testing.assert_allclose(np.std(value), 128**-0.5, rtol=0.15)


def test_overrides_reach_the_model_and_leave_the_table_alone():
  before = variants.spec("tiny-vit")
  model = variants.create_model(
    "tiny-vit",
    overrides={
      "embed_dim": 48,
      "image": {"depth": 1, "patch_dropout": 0.5},
      "image_mean": [0.5, 0.5, 0.5],
    },
  )
  assert (model.embed_dim, model.image.depth) == (48, 1)
  assert model.image.patch_dropout == 0.5
  assert model.image.width == before["image"]["width"]
  assert model.image_mean == (0.5, 0.5, 0.5)
  assert variants.spec("tiny-vit") == before


def test_how_a_model_is_run_is_no_part_of_its_description():
  run_so = {"image": {"patch_dropout": 0.5}, "text": {"remat": "full"}}
  model = variants.create_model("tiny-vit", overrides=run_so)
  assert variants.execution(model) == run_so
  assert variants.spec("tiny-vit", run_so) == variants.spec("tiny-vit")
  described = variants.spec("tiny-vit")
  assert variants.create_model(described, execution=run_so) == model
  assert variants.execution(variants.create_model("tiny-rn")) == {}
  with pytest.raises(errors.UserError, match=r"image\.unroll"):
    variants.create_model("tiny-rn", execution={"image": {"unroll": 2}})


def test_another_kind_of_tower_keeps_the_fields_that_both_have():
  changed = variants.spec("tiny-rn", {"text": {"kind": "cbow"}})
  assert changed["text"] == variants.spec("tiny-cbow")["text"]
  with pytest.raises(errors.UserError, match=r"image\.patch_size"):
    variants.spec("tiny-rn", {"image": {"kind": "vit"}})


def test_a_resolved_description_makes_the_same_model():
  description = variants.spec("RN50", {"text": {"depth": 3}})
  assert description["text"]["norm_epsilon"] == 1e-5
  assert description["interpolation"] == "bicubic"
  assert variants.create_model(description) == variants.create_model(
    "RN50", overrides={"text": {"depth": 3}}
  )
  assert variants.spec(description) == description


@pytest.mark.parametrize(
  ("name", "overrides", "message"),
  [
    ("ViT-B32", {}, "Unknown model 'ViT-B32'. Did you mean 'ViT-B-32'"),
    ("vit_b_32", {}, "Did you mean 'ViT-B-32'"),
    ("ViT-B/32", {}, "Did you mean 'ViT-B-32'"),
    ("RN50-quickgelu", {}, "Did you mean 'RN50'"),
    ("ViT-L-14-336-quickgelu", {}, "Did you mean 'ViT-L-14-336'"),
    ("ViT-B-32-gelu-quickgelu", {}, "Did you mean 'ViT-B-32-quickgelu'"),
    ("ViT_bigG_14", {}, "Did you mean 'ViT-bigG-14'"),
    ("coca_ViT-B-32", {}, "'coca_ViT-B-32'. CoCa is not built in; what is"),
    ("convnext_base", {}, "ConvNeXt is not built in"),
    ("EVA02-B-16", {}, "EVA is not built in"),
    ("ViT-B-16-SigLIP2-naflex", {}, "NaFlex is not built in"),
    ("hf-hub:org/name", {}, "clip_jax.load reads it, .*--config.init.model"),
    ({}, {}, "lacks 'image'"),
    (
      {k: variants.VARIANTS["tiny-rn"][k] for k in ("image", "text")},
      {},
      "lacks 'embed_dim'",
    ),
    ("tiny-vit", {"image": {"widht": 3}}, r"image\.widht.*image\.width"),
    ("tiny-vit", {"txt": {}}, "Unknown model field 'txt'"),
    ("tiny-vit", {"text": {"kind": "bow"}}, "text tower 'bow'"),
    ("tiny-rn", {"image": {"heads": 3}}, r"'image\.heads'"),
    ("tiny-rn", {"image": 3}, "'image' takes a dict"),
    ("tiny-rn", {"image": {"depths": []}}, "a list of one or more whole n"),
  ],
)
def test_unknown_names_are_refused_with_the_known_ones(
  name, overrides, message
):
  with pytest.raises(errors.UserError, match=message):
    variants.create_model(name, overrides=overrides)


# Of open_clip (June 2026).
ELSEWHERE = """
CLAP-HTSAT-tiny CLAP-Whisper-small-Roberta-base EVA01-g-14-plus EVA02-E-14
MobileCLIP-S1 MobileCLIP2-L-14 PE-Core-bigG-14-448 ViTamin-XL-256 ViTamin-B
ViTamin-S-LTT coca_ViT-L-14 coca_base coca_roberta-ViT-B-32 convnext_xxlarge
gte-modernbert-base-ViT-B-32-256 moderntext-naflex_ViT-B-deep-16
mt5-xl-ViT-H-14 naflex_ViT-B-16 naflexclap_little naflexgenlip_so16
nllb-clip-base-siglip roberta-ViT-B-32 swin_base_patch4_window7_224
xlm-roberta-large-ViT-H-14 ViT-SO400M-16-SigLIP2-naflex
"""


def test_names_of_other_families_are_none_that_are_built_in():
  for name in variants.VARIANTS:
    assert other_families.family(name) is None, name
  for name in ELSEWHERE.split():
    assert other_families.family(name), name
  others = (
    "runs/vitamins medieval evaluation out5 t500 swinging my_swing mine-t5"
  )
  for name in [*others.split(), "runs/dino_test", "dino"]:
    assert other_families.family(name) is None, name
