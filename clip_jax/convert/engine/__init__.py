"""What every checkpoint format is made of.

A format is data in one file of `convert/formats/`:

- `names.Names`: tables with a row a tensor, "KIND THEIRS OURS". The rows read
  and write, and the engine accounts for every tensor (`entries`).
- `fields.Field` and its relatives: a row a field of the config. A row reads,
  writes, says in the report where its value comes from, and refuses.
- `family.Family` holds both, with the defaults of the config's classes.
- `format.Format` says how files of the format are recognised, read and
  written; `convert/formats/table.py` lists them all.

To write one, after the example of `formats/huggingface_clip.py`:

    TOWER = '''
    -      token_embedding.weight  token_embedding/embedding
    stack  layers.{i}.             blocks  block
    norm   final_norm              ln_final
    '''
    BLOCK = '''
    norm   norm1                   ln_1
    heads  attn.q_proj             attention/query
    '''
    FAMILY = Family(
      "my_clip",
      Names({"whole": "part text. text tower", "tower": TOWER, "block": BLOCK}),
      fields=(
        Fixed("text.kind", "transformer", in_weights=True),
        Field("text.layers", "text.depth", in_weights=True),
        Field("text.act", "text.activation", one_of({"gelu": "gelu"})),
        Written("model_type", "my_clip"),
      ),
      defaults={"text": {"layers": 12}},
    )

`FAMILY.describe(Source(config, FAMILY.defaults, …))` reads a config,
`FAMILY.config(spec)` writes one, `FAMILY.entries(spec)` places every tensor for
`portable.assemble` and `to_theirs`, and `FAMILY.refusals(spec)` names the
fields of a model that would not come back from such a config: no refusal is
written by hand. What takes several fields at once is a class derived from
`fields.Row`; a layout that no rule has is a line in `names.RULES`. Another
model of HuggingFace's is a `formats.huggingface_family.HuggingFaceFamily`,
listed in `formats/huggingface.py`, as `huggingface_chinese_clip.py` is.
A new class of image processor is a line in `formats/huggingface_images.py`, and
the model's class one in `verify/huggingface.py`, for `verify`.
"""

from clip_jax.convert.engine.entries import (
  IMAGE_FIELDS,
  STAND_INS,
  Entry,
  Leaf,
  Slot,
  block_slot,
  check_cover,
  completed,
  flatten,
  leaf_shapes,
  resolve,
  their_shape,
  to_ours,
  to_theirs,
  towers,
)

__all__ = [
  "IMAGE_FIELDS",
  "STAND_INS",
  "Entry",
  "Leaf",
  "Slot",
  "block_slot",
  "check_cover",
  "completed",
  "flatten",
  "leaf_shapes",
  "resolve",
  "their_shape",
  "to_ours",
  "to_theirs",
  "towers",
]
