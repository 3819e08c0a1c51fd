"""What every checkpoint format is made of.

A format is data in one file of `convert/formats/`:

- `names.Names`: tables with a row a tensor, "KIND THEIRS OURS". The rows read
  and write, and the engine accounts for every tensor (`entries`).
- `fields.Field` and its relatives: a row a field of the config. A row reads,
  writes, says in the report where its value comes from, and refuses.
- `family.Family` holds both, with the defaults of the config's classes.
- `formats.Format` says how files of the format are recognised, read and
  written; `convert/formats/table.py` lists them all.

To write one, after the example of `formats/huggingface_clip.py`:

    BLOCK = "norm layer_norm1 ln_1\nheads self_attn.q_proj attention/query …"
    TEXT = "-     token_embedding.weight token_embedding/embedding\n"
           "stack layers.{i}.            blocks block"
    FAMILY = Family(
      "my_clip",
      Names({"whole": "part text_model. text text\n…",
             "text": TEXT, "block": BLOCK}),
      fields=(
        Fixed("text.kind", "transformer"),
        Field("num_hidden_layers", "text.depth", INTEGER, in_weights=True),
        Field("hidden_act", "text.activation", one_of(ACTIVATIONS)),
        Written("model_type", "my_clip"),
      ),
      defaults={"num_hidden_layers": 12},
    )

`FAMILY.describe(source)` reads a config, `FAMILY.config(spec)` writes one,
`FAMILY.entries(spec)` places every tensor, and `FAMILY.refusals(spec)` names
the fields of a model that would not come back from such a config.
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
