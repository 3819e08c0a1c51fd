"""Names and fields as tables: what the rows of a format mean."""

import numpy as np
import pytest

from clip_jax import errors
from clip_jax.convert import engine
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family as family_lib
from clip_jax.convert.engine import fields
from clip_jax.convert.engine.family import Family
from clip_jax.convert.engine.fields import Field, Fixed, Written
from clip_jax.convert.engine.names import FLAX, Names
from clip_jax.convert.formats import huggingface
from clip_jax.models import variants

SPEC = {
  "image": {"kind": "vit", "depth": 2, "heads": 4, "pooling": "map"},
  "text": {"kind": "transformer", "depth": 1, "heads": 3, "pooling": "last"},
  "image_projection": "none",
}


def _names(whole, variables=None, kinds=None, **tables):
  more = {} if kinds is None else {"kinds": kinds}
  return Names({"whole": whole, **tables}, variables=variables or {}, **more)


def _rows(names, spec=SPEC, **variables):
  return {
    entry.name: [(slot.path, slot.layer) for slot in entry.slots]
    for entry in names.entries(spec, variables)
  }


def test_a_layer_is_a_row_below_the_prefixes_of_its_tower():
  names = _names("part visual. image image", image="norm post ln_post")
  assert _rows(names) == {
    "visual.post.weight": [("params/image/ln_post/scale", None)],
    "visual.post.bias": [("params/image/ln_post/bias", None)],
  }


def test_a_stack_has_its_rows_for_each_layer_and_fuses_them():
  names = _names(
    "part . image image",
    image="stack blocks.{i}. blocks block",
    block="in_proj attn.in_proj attention/query,key,value",
  )
  rows = _rows(names)
  assert len(rows) == 4
  blocks = "params/image/encoder/blocks/attention"
  assert rows["blocks.1.attn.in_proj_weight"] == [
    (f"{blocks}/{part}/kernel", 1) for part in ("query", "key", "value")
  ]


def test_layers_that_are_stacked_there_too_are_one_tensor():
  names = _names(
    "part . image image",
    kinds=FLAX,
    image="stack layers/ blocks block",
    block="norm ln ln_1",
  )
  path = "params/image/encoder/blocks/ln_1/scale"
  assert _rows(names)["layers/ln/scale"] == [(path, None)]


def test_a_resnets_blocks_are_numbered_and_the_first_projects():
  names = _names(
    "part . image image",
    image="stages layer{stage}.{block}. blocks block",
    block="batch_norm bn norm\nconv down.weight down/kernel if first",
  )
  image = {"kind": "resnet", "width": 8, "depths": [1, 2]}
  rows = _rows(names, {**SPEC, "image": image})
  assert rows["layer2.1.bn.running_var"] == [
    ("batch_stats/image/stage_2_block_2/norm/var", None)
  ]
  assert [name for name in rows if "down" in name] == [
    "layer1.0.down.weight",
    "layer2.0.down.weight",
  ]


@pytest.mark.parametrize(
  ("condition", "there"),
  [
    ("image_projection", True),
    ("not image_projection", False),
    ("image_projection=none", True),
    ("image_projection!=none", False),
    ("image.pooling=map", True),
    ("old", False),
    ("not old", True),
  ],
)
def test_a_row_is_there_on_its_condition(condition, there):
  names = _names(f"- a log_scale if {condition}", {"old": False})
  assert bool(_rows(names)) == there


def test_a_variable_is_a_part_of_a_name_or_a_condition():
  names = _names("- {root}a log_scale if not old", {"root": "", "old": False})
  assert list(_rows(names, root="model.")) == ["model.a"]
  assert not _rows(names, old=True)
  with pytest.raises(AssertionError, match="unknown"):
    _rows(names, prefix="")


def test_a_condition_on_what_nothing_says_is_an_error():
  with pytest.raises(KeyError, match="poolign"):
    _rows(_names("- a log_scale if poolign=map"))


def test_a_tower_alone_has_its_own_rows_only():
  whole = "- scale log_scale\npart v. image one\npart t. text one"
  names = _names(whole, one="- a a")
  assert list(_rows(names, {"text": SPEC["text"]})) == ["t.a"]


def _toy(*more):
  return Family(
    "toy",
    _names(""),
    (
      *fields.within(
        "t",
        "text",
        (
          Fixed("kind", "cbow", in_weights=True),
          Field("length", "context_length", in_weights=True),
          Field("vocab", "vocab_size", in_weights=True),
          Field("dim", "width"),
          Written("dropout", 0.0),
        ),
      ),
      Fixed("image", engine.STAND_INS["image"], in_weights=True),
      Fixed("embed_dim", 1, in_weights=True),
      Fixed("embed_norm", "l2", also=("l2_plus_1e-8",)),
      *more,
    ),
    {"t": {"dim": 24}},
  )


def _read(family, values, **more):
  report = report_lib.Report("toy")
  source = fields.ConfigReader(
    values, family.defaults, where={"": "toy.json"}, report=report, **more
  )
  return family.describe(source), report


def test_a_row_reads_reports_its_source_and_writes():
  family = _toy()
  config = {"t": {"length": 7, "vocab": 9}}
  spec, report = _read(family, config)
  assert spec["text"]["width"] == 24
  assert report.inferred["text.width"] == {"value": 24, "source": "format"}
  assert report.inferred.keys() == {"text.width", "embed_norm"}
  written = family.config(engine.resolve(spec))
  assert written == {"t": {**config["t"], "dim": 24, "dropout": 0.0}}
  _, report = _read(family, written)
  assert report.inferred["text.width"]["source"] == "config"


def test_what_a_user_says_counts_and_is_told():
  spec, report = _read(
    _toy(), {"t": {"length": 7, "vocab": 9}}, overrides={"width": 32}
  )
  assert spec["text"]["width"] == 32
  assert report.inferred["text.width"]["source"] == "flag"
  assert report.warnings == [
    "--width 32 overrides toy.json, t, whose default is dim=24."
  ]
  given = {"t": {"length": 7, "vocab": 9, "dim": 16}}
  _, report = _read(_toy(), given, overrides={"width": 32})
  assert report.warnings == [
    "--width 32 overrides toy.json, t, which says dim=16."
  ]


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"length": 7}, r"toy\.json, t lacks vocab"),
    ({"length": 7.0, "vocab": 9}, "length must be a whole number .* got 7.0"),
    ({"length": 7, "vocab": True}, "vocab must be a whole number .* got True"),
  ],
)
def test_a_field_of_no_such_value_is_named(values, message):
  with pytest.raises(errors.UserError, match=message):
    _read(_toy(), {"t": values})


def test_what_does_not_come_back_is_refused():
  family = _toy()
  spec, _ = _read(family, {"t": {"length": 7, "vocab": 9}})
  spec = engine.resolve(spec)
  assert family.refusals(spec) == []
  assert family.refusals({**spec, "embed_norm": "l2_plus_1e-8"}) == []
  assert family.refusals({**spec, "embed_norm": "l2_rsqrt_1e-6"}) == [
    "embed_norm='l2_rsqrt_1e-6' is not supported by this format "
    "(only 'l2' or 'l2_plus_1e-8')"
  ]
  image = {**spec["image"], "registers": 4}
  assert family.refusals({**spec, "image": image}) == [
    "image.registers=4 is not supported by this format (only 0)"
  ]
  text = variants.spec("ViT-B-32")["text"]
  assert family.refusals({**spec, "text": text}) == [
    "text.kind='transformer' is not supported by this format (only 'cbow')"
  ]


FAMILIES = huggingface.FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_comes_back_as_the_description_that_it_was_made_from(name):
  family = FAMILIES[name]
  found, _ = _read(family, {"text_config": {}, "vision_config": {}})
  spec = engine.resolve(found)
  assert family.refusals(spec) == []
  again, _ = _read(family, family.config(spec))
  assert family_lib.normal_form(
    engine.resolve(again)
  ) == family_lib.normal_form(spec)
  # No field is passed over: each other value of a flag is refused.
  for tower in ("image", "text"):
    for field, value in spec[tower].items():
      if type(value) is bool:
        other = {**spec[tower], field: not value}
        quiet = field == "drop_edge" or (
          field == "class_position" and not spec["image"]["class_token"]
        )
        problems = family.refusals({**spec, tower: other})
        assert bool(problems) != quiet, field


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_of_a_family_has_one_place(name):
  sizes = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 40}
  parts = {"num_attention_heads": 3, **sizes}
  found, _ = _read(
    FAMILIES[name],
    {"text_config": {**parts, "vocab_size": 9}, "vision_config": parts},
  )
  spec = engine.resolve(found)
  entries = FAMILIES[name].entries(spec)
  shapes = engine.leaf_shapes(spec)
  engine.check_cover(entries, shapes)
  rng = np.random.default_rng(0)
  for entry in entries:
    parts = [
      rng.normal(size=shapes[s.path][0 if s.layer is None else 1 :])
      for s in entry.slots
    ]
    theirs = entry.transform.theirs(parts)
    for part, back in zip(parts, entry.transform.ours(theirs), strict=True):
      np.testing.assert_array_equal(part, back)
