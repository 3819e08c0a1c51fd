"""How big_vision names and lays out the arrays of its models.

Most arrays are as ours, under flax's numbered names. What varied over the
years, and between the two ways of stacking layers, is a `Layout`: it is found
in a checkpoint's names, and gives the same names back.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import engine, transforms
from clip_jax.convert.engine import Entry, Slot

# Where parameters are in a training checkpoint, now and formerly.
ROOTS = ("params/", "opt/target/")
_ENCODERS = {"image": "Transformer/", "text": "Encoder_0/"}
# The first found is where a tower's positions are, newest first.
_POSITIONS = (
  "pos_embedding",
  "Transformer/pos_embedding",
  "Transformer/posembed_input/pos_embedding",
)
MAP_HEAD = "MAPHead_0/"
BERT = "BertEncoder_0/"
_BERT_LAYER = BERT + "encoder_block/layer_sequence/layers_"


@dataclasses.dataclass(frozen=True)
class TowerLayout:
  """The names and shapes of one tower.

  Attributes:
    prefix: of all its names, below the root.
    positions: name of the position embedding.
    scan: layers lie on a leading axis instead of under numbered names.
    attention: name of a block's attention; older releases count on.
    mlp: name of a block's MLP.
    norms: names of a block's two norms.
    map_head: prefix of the attention pool's names.
    flat_patches: NaFlex's shapes: the patch kernel is a matrix and positions
      have rows and cols.
    flat_heads: BERT's kernels are matrices.
  """

  prefix: str
  positions: str = "pos_embedding"
  scan: bool = False
  attention: str = "MultiHeadDotProductAttention_0"
  mlp: str = "MlpBlock_0"
  norms: tuple[str, str] = ("LayerNorm_0", "LayerNorm_1")
  map_head: str = MAP_HEAD
  flat_patches: bool = False
  flat_heads: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
  """The names and shapes of a checkpoint; a tower that it lacks is None."""

  root: str
  image: TowerLayout | None
  text: TowerLayout | None

  def to_dict(self) -> dict[str, Any]:
    """Returns the layout as plain data."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> "Layout":
    """Returns the layout that `to_dict`, or its JSON, described."""

    def tower(part):
      if part is None:
        return None
      return TowerLayout(**{**part, "norms": tuple(part["norms"])})

    return cls(fields["root"], tower(fields["image"]), tower(fields["text"]))


# What big_vision writes today for a model of two towers.
MODERN = Layout("params/", TowerLayout("img/"), TowerLayout("txt/"))


def find(shapes: Mapping[str, tuple[int, ...]], name: str) -> Layout:
  """Returns the layout of a checkpoint.

  Args:
    shapes: of its arrays, by name.
    name: what messages call it.

  Raises:
    UserError: it has no tower that is known.
  """
  root = next((r for r in ROOTS if any(k.startswith(r) for k in shapes)), "")
  image = _prefix(shapes, root, ("img/", ""), ("embedding/kernel",))
  text = _prefix(
    shapes,
    root,
    ("txt/", ""),
    ("Embed_0/embedding", f"{BERT}embedder/embedders_token_ids/embedding"),
  )
  if image is None and text is None:
    shown = ", ".join(list(shapes)[:5])
    raise errors.UserError(
      f"{name} holds no model of big_vision's: neither an image tower "
      "(…embedding/kernel) nor a text tower (…Embed_0/embedding, …BertEncoder_0"
      f"/…); it has {shown or 'nothing'}, … ."
    )
  return Layout(
    root,
    None if image is None else _find_image(shapes, root, image),
    None if text is None else _find_text(shapes, root, text),
  )


def _prefix(names, root, prefixes, marks) -> str | None:
  return next(
    (p for p in prefixes if any(root + p + mark in names for mark in marks)),
    None,
  )


def _find_blocks(shapes, prefix: str) -> dict[str, Any]:
  """Returns the fields of a tower whose encoder's names begin with `prefix`."""
  found = {"scan": any(k.startswith(f"{prefix}encoderblock/") for k in shapes)}
  block = (
    f"{prefix}encoderblock/" if found["scan"] else (f"{prefix}encoderblock_0/")
  )
  parts = sorted(
    {k[len(block) :].split("/")[0] for k in shapes if k.startswith(block)},
    key=lambda part: (len(part), part),
  )

  def named(kind):
    return [part for part in parts if re.fullmatch(kind + r"_\d{1,2}", part)]

  for field, kind in (
    ("attention", "MultiHeadDotProductAttention"),
    ("mlp", "MlpBlock"),
  ):
    if len(names := named(kind)) == 1:
      found[field] = names[0]
  if len(names := named("LayerNorm")) == 2:
    found["norms"] = tuple(names)
  return found


def _find_image(shapes, root, prefix) -> TowerLayout:
  head = root + prefix
  positions = next((p for p in _POSITIONS if head + p in shapes), _POSITIONS[0])
  return TowerLayout(
    prefix,
    positions=positions,
    map_head="" if f"{head}probe" in shapes else MAP_HEAD,
    flat_patches=len(shapes[f"{head}embedding/kernel"]) == 2,
    **_find_blocks(shapes, head + _ENCODERS["image"]),
  )


def _find_text(shapes, root, prefix) -> TowerLayout:
  head = root + prefix
  query = f"{head}{_BERT_LAYER}0/attention_block/attention_layer/query/kernel"
  return TowerLayout(
    prefix,
    flat_heads=len(shapes.get(query, ())) == 2,
    **_find_blocks(shapes, head + _ENCODERS["text"]),
  )


def tower_prefix(layout: Layout, tower: str) -> str:
  """Returns what a tower's names begin with, the root included."""
  return layout.root + getattr(layout, tower).prefix


def block_prefix(layout: Layout, tower: str) -> str:
  """Returns what the names of the first block begin with."""
  scan = getattr(layout, tower).scan
  number = "" if scan else "_0"
  prefix = tower_prefix(layout, tower)
  return f"{prefix}{_ENCODERS[tower]}encoderblock{number}/"


def entries(spec: dict[str, Any], layout: Layout) -> list[Entry]:
  """Returns where each array of a checkpoint goes."""
  towers = engine.towers(spec)
  found = []
  if "image" in towers:
    found += _vit(spec["image"], layout)
  if "text" in towers:
    text = {"transformer": _transformer, "bert": _bert}[spec["text"]["kind"]]
    found += text(spec["text"], layout)
  if len(towers) == 1:
    return found
  for tower in towers:
    if spec[f"{tower}_projection"] == "linear_bias":
      head = f"{tower_prefix(layout, tower)}head"
      found += _pairs(head, f"params/{tower}_projection", ("kernel", "bias"))
  scalar = transforms.reshape((), (1,))
  found.append(Entry(f"{layout.root}t", (Slot("params/log_scale"),), scalar))
  if spec["init_logit_bias"] is not None:
    bias = (Slot("params/logit_bias"),)
    found.append(Entry(f"{layout.root}b", bias, scalar))
  return found


def _pairs(theirs: str, ours: str, leaves: Iterable[str]) -> list[Entry]:
  return [Entry(f"{theirs}/{x}", (Slot(f"{ours}/{x}"),)) for x in leaves]


def _parts(layout: TowerLayout) -> dict[str, str]:
  """Returns their modules of a pre-norm block by ours."""
  first, second = layout.norms
  attention = {
    f"attention/{part}": f"{layout.attention}/{part}"
    for part in ("query", "key", "value", "out")
  }
  return {
    "ln_1": first,
    **attention,
    "ln_2": second,
    "mlp/fc_in": f"{layout.mlp}/Dense_0",
    "mlp/fc_out": f"{layout.mlp}/Dense_1",
  }


def _leaf_names(module: str) -> tuple[str, str]:
  return ("scale" if module.startswith("ln") else "kernel", "bias")


def _blocks(tower: str, description: dict, layout: Layout) -> list[Entry]:
  encoder = tower_prefix(layout, tower) + _ENCODERS[tower]
  this = getattr(layout, tower)
  found = []
  for layer in [None] if this.scan else range(description["depth"]):
    number = "" if layer is None else f"_{layer}"
    for ours, theirs in _parts(this).items():
      found += [
        Entry(
          f"{encoder}encoderblock{number}/{theirs}/{leaf}",
          (engine.block_slot(tower, f"{ours}/{leaf}", layer),),
        )
        for leaf in _leaf_names(ours)
      ]
  return found


def _map_head(tower: str, layout: Layout) -> list[Entry]:
  head = tower_prefix(layout, tower) + getattr(layout, tower).map_head
  ours = f"params/{tower}/map_head"
  # The head came after the blocks' names had settled, and has one norm.
  parts = _parts(TowerLayout("", norms=("", "LayerNorm_0")))
  del parts["ln_1"]
  found = [Entry(f"{head}probe", (Slot(f"{ours}/probe"),))]
  for part, theirs in parts.items():
    place = part.replace("ln_2", "ln")
    found += _pairs(head + theirs, f"{ours}/{place}", _leaf_names(part))
  return found


def _vit(description: dict, layout: Layout) -> list[Entry]:
  prefix, image = tower_prefix(layout, "image"), "params/image"
  width, patch = description["width"], description["patch_size"]
  side = description["image_size"] // patch
  rows = side * side + (
    description["class_token"] and description["class_position"]
  )
  kernel, positions = transforms.IDENTITY, (1, rows, width)
  if layout.image.flat_patches:
    kernel = transforms.reshape(
      (patch, patch, 3, width), (patch * patch * 3, width)
    )
    positions = (side, side, width)
  found = [
    Entry(
      f"{prefix}embedding/kernel", (Slot(f"{image}/patch_kernel"),), kernel
    ),
    Entry(f"{prefix}embedding/bias", (Slot(f"{image}/patch_bias"),)),
    Entry(
      prefix + layout.image.positions,
      (Slot(f"{image}/position_embedding"),),
      transforms.reshape((rows, width), positions),
    ),
  ]
  if description["class_token"]:
    found.append(
      Entry(
        f"{prefix}cls",
        (Slot(f"{image}/class_embedding"),),
        transforms.reshape((width,), (1, 1, width)),
      )
    )
  found += _blocks("image", description, layout)
  norm = f"{prefix}{_ENCODERS['image']}encoder_norm"
  found += _pairs(norm, f"{image}/ln_post", ("scale", "bias"))
  if description["pooling"] == "map":
    found += _map_head("image", layout)
  return found


def _transformer(description: dict, layout: Layout) -> list[Entry]:
  prefix, text = tower_prefix(layout, "text"), "params/text"
  shape = (description["context_length"], description["width"])
  found = [
    Entry(
      f"{prefix}Embed_0/embedding",
      (Slot(f"{text}/token_embedding/embedding"),),
    ),
    Entry(
      prefix + layout.text.positions,
      (Slot(f"{text}/position_embedding"),),
      transforms.reshape(shape, (1, *shape)),
    ),
    *_blocks("text", description, layout),
  ]
  norm = f"{prefix}{_ENCODERS['text']}encoder_norm"
  found += _pairs(norm, f"{text}/ln_final", ("scale", "bias"))
  if description["pooling"] == "map":
    found += _map_head("text", layout)
  return found


# Their modules of a post-norm block by ours: flaxformer's names.
_BERT_PARTS = {
  "attention/query": "attention_block/attention_layer/query",
  "attention/key": "attention_block/attention_layer/key",
  "attention/value": "attention_block/attention_layer/value",
  "attention/out": "attention_block/dense_layer",
  "ln_1": "attention_block/layer_norm",
  "mlp/fc_in": "mlp_block/mlp/dense_layer",
  "mlp/fc_out": "mlp_block/dense_layer",
  "ln_2": "mlp_block/layer_norm",
}


def _bert(description: dict, layout: Layout) -> list[Entry]:
  prefix, text = tower_prefix(layout, "text") + BERT, "params/text"
  width, heads = description["width"], description["heads"]
  flat = {}
  if layout.text.flat_heads:
    split = (heads, width // heads)
    inward = transforms.reshape((width, *split), (width, width))
    bias = transforms.reshape(split, (width,))
    for part in ("query", "key", "value"):
      flat[f"attention/{part}/kernel"] = inward
      flat[f"attention/{part}/bias"] = bias
    outward = transforms.reshape((*split, width), (width, width))
    flat["attention/out/kernel"] = outward
  embedder = f"{prefix}embedder/embedders_"
  found = [
    Entry(f"{embedder}{theirs}_ids/embedding", (Slot(f"{text}/{ours}"),))
    for theirs, ours in (
      ("token", "token_embedding/embedding"),
      ("position", "position_embedding"),
      ("segment", "token_type_embedding"),
    )
  ]
  found += _pairs(f"{prefix}layer_norm", f"{text}/ln_embed", ("scale", "bias"))
  for layer in range(description["depth"]):
    name = f"{tower_prefix(layout, 'text')}{_BERT_LAYER}{layer}/"
    for ours, theirs in _BERT_PARTS.items():
      found += [
        Entry(
          f"{name}{theirs}/{leaf}",
          (engine.block_slot("text", f"{ours}/{leaf}", layer),),
          flat.get(f"{ours}/{leaf}", transforms.IDENTITY),
        )
        for leaf in _leaf_names(ours)
      ]
  return found
