"""The names of a checkpoint's tensors, as tables with a row for each:

    -      embeddings.class_embedding        class_embedding  if class_token
    conv   embeddings.patch_embedding.weight patch_kernel
    stack  encoder.layers.{i}.               blocks           block
    norm   post_layernorm                    ln_post

A row is KIND THEIRS OURS. THEIRS and OURS are relative to the prefixes of the
rows that led to the table. KIND is one of these:

- a rule of `transforms`: one tensor with that layout;
- a name in the table's `kinds`: a layer with its weight, bias and so on;
- `part`: includes the rows of another table, named at the end of the row, with
  both names as prefixes. OURS "image" or "text" is that tower's prefix, "." is
  an empty prefix;
- `stack`: includes a table for each layer of the tower, whose number is `{i}`;
  without `{i}`, their layers are stacked in one array as ours are. OURS is
  "blocks";
- `stages`: includes a table for each block of a ResNet, with `{stage}` and
  `{block}`.

If one tensor holds several of our arrays, OURS is "attention/query,key,value".

A row may end in "if FIELD", "if not FIELD", "if FIELD=VALUE" or
"if FIELD!=VALUE". FIELD is a field of the tower's description, of the model's
("image.kind"), or one of the variables; variables in braces become parts of
names, or a KIND. A variable "image" or "text" may hold more variables, for the
rows of that tower. Rows of a tower that a model lacks are left out; if it has
only one tower, rows outside of the towers are left out as well.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.convert import transforms
from clip_jax.convert.engine import Entry, Slot, towers
from clip_jax.models import paths

Tower = Mapping[str, Any]


# A kind of layer: (end of their name, end of ours, rule) of each tensor.
Layer = tuple[tuple[str, str, str], ...]
# torch's layers: matrices are [out, in].
TORCH: dict[str, Layer] = {
  "norm": ((".weight", "/scale", "-"), (".bias", "/bias", "-")),
  "linear": ((".weight", "/kernel", "T"), (".bias", "/bias", "-")),
  "weight": ((".weight", "/kernel", "T"),),
  "heads": ((".weight", "/kernel", "heads"), (".bias", "/bias", "bias")),
  "out": ((".weight", "/kernel", "out"), (".bias", "/bias", "-")),
  "kv": ((".weight", "/kernel", "fused2"), (".bias", "/bias", "fused2_bias")),
  "qkv": ((".weight", "/kernel", "fused3"), (".bias", "/bias", "fused3_bias")),
  # torch.nn.MultiheadAttention's.
  "in_proj": (
    ("_weight", "/kernel", "fused3"),
    ("_bias", "/bias", "fused3_bias"),
  ),
  # TensorFlow's names of a norm, which old BERTs keep.
  "gamma": ((".gamma", "/scale", "-"), (".beta", "/bias", "-")),
  "batch_norm": (
    (".weight", "/scale", "-"),
    (".bias", "/bias", "-"),
    (".running_mean", "/mean", "-"),
    (".running_var", "/var", "-"),
  ),
}
# flax's layers, with heads in the shape of attention's kernels, as here.
FLAX: dict[str, Layer] = {
  "norm": (("/scale", "/scale", "-"), ("/bias", "/bias", "-")),
  "linear": (("/kernel", "/kernel", "-"), ("/bias", "/bias", "-")),
  "weight": (("/kernel", "/kernel", "-"),),
  "attention": tuple(
    (f"/{part}/{name}", f"/{part}/{name}", "-")
    for part in ("query", "key", "value", "out")
    for name in ("kernel", "bias")
  ),
  # The same, but attention's kernels are matrices.
  "heads": (("/kernel", "/kernel", "flat_heads"), ("/bias", "/bias", "bias")),
  "out": (("/kernel", "/kernel", "flat_out"), ("/bias", "/bias", "-")),
}
_STATISTICS = ("mean", "var")


@dataclasses.dataclass(frozen=True)
class Names:
  """The tables of a format.

  Attributes:
    tables: tables by name; "whole" is the first one to be read.
    kinds: kinds of layers by name: `TORCH` or `FLAX`, with additions.
    variables: default values of the variables in braces and conditions.
  """

  tables: Mapping[str, str]
  kinds: Mapping[str, Layer] = dataclasses.field(default_factory=lambda: TORCH)
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def entries(
    self, spec: Mapping[str, Any], variables: Mapping[str, Any] | None = None
  ) -> list[Entry]:
    """Returns the entry of each tensor.

    Args:
      spec: the complete description, of both towers or of one.
      variables: values of variables that differ from the default.
    """
    facts = {**self.variables, **(variables or {})}
    unknown = facts.keys() - self.variables.keys()
    assert not unknown, f"unknown variables: {unknown}"
    return list(self._rows("whole", _Place(spec, facts)))

  def _rows(self, table: str, place: "_Place") -> Iterator[Entry]:
    for line in self.tables[table].splitlines():
      row, _, condition = line.partition(" if ")
      if not row.strip():
        continue
      kind, theirs, ours, *inner = row.split()
      kind = kind.format(**place.facts)
      if kind == "part" and not place.has(ours):
        continue
      if kind != "part" and not place.exists:
        continue
      if condition and not place.holds(condition.strip()):
        continue
      if inner:
        for below in _EXPAND[kind](place, theirs, ours):
          yield from self._rows(inner[0], below)
      else:
        layer = self.kinds.get(kind, (("", "", kind),))
        yield from place.entries(theirs, ours, layer)


@dataclasses.dataclass(frozen=True)
class _Place:
  """The place in both trees to which a table's rows are relative.

  Attributes:
    spec: the model's description.
    facts: the variables.
    theirs: prefix of their names.
    ours: prefix of our paths, such as "text/".
    layer: number of the layer in a stack; None if theirs are stacked too.
    stacked: whether the place is in a tower's stack of blocks.
  """

  spec: Mapping[str, Any]
  facts: Mapping[str, Any]
  theirs: str = ""
  ours: str = ""
  layer: int | None = None
  stacked: bool = False

  @property
  def tower(self) -> Tower:
    name = self.ours.split("/")[0]
    return self.spec[name] if name in ("image", "text") else {}

  @property
  def exists(self) -> bool:
    """Whether the model has this tower; outside of towers, if it has both."""
    return bool(self.tower) or len(towers(self.spec)) == 2

  def has(self, ours: str) -> bool:
    """Whether the model has the part `ours`."""
    if self.ours or ours not in ("image", "text"):
      return True
    return ours in self.spec

  def holds(self, condition: str) -> bool:
    """Whether a row's condition holds."""
    negated = condition.startswith("not ")
    field, sign, value = condition.removeprefix("not ").partition("=")
    differs = field.endswith("!")
    found = self._fact(field.removesuffix("!"))
    true = str(found) == value if sign else bool(found)
    return true != (negated or differs)

  def _fact(self, field: str) -> Any:
    part, _, inner = field.rpartition(".")
    for known in (self.facts, self.spec[part] if part else self.tower):
      if inner in known:
        return known[inner]
    if field in self.spec:
      return self.spec[field]
    raise KeyError(f"a row uses {field!r}, not a field or a variable")

  def entries(self, theirs: str, ours: str, layer: Layer) -> Iterator[Entry]:
    """Yields the entries of one row."""
    parent, _, last = f"/{ours}".rpartition("/")
    paths = [f"{parent}/{name}"[1:] for name in last.split(",")]
    name = self.theirs + theirs.format(**self.facts)
    for end, our_end, rule in layer:
      slots = tuple(self._slot(f"{path}{our_end}") for path in paths)
      yield Entry(f"{name}{end}", slots, transforms.of_rule(rule, self.tower))

  def _slot(self, path: str) -> Slot:
    if self.stacked:
      tower, _, inner = self.ours.partition("/")
      return Slot(f"params/{paths.stack(tower)}/{inner}{path}", self.layer)
    is_statistic = path.rpartition("/")[2] in _STATISTICS
    root = "batch_stats" if is_statistic else "params"
    return Slot(f"{root}/{self.ours}{path}")

  def part(self, theirs: str, ours: str) -> Iterator["_Place"]:
    """Yields the place with both names added to the prefixes."""
    below = "" if ours == "." else f"{ours}/"
    name = "" if theirs == "." else theirs.format(**self.facts)
    facts = self.facts
    # A tower's own variables are nested under its name.
    if isinstance(own := facts.get(ours), Mapping):
      facts = {**facts, **own}
    yield dataclasses.replace(
      self, theirs=self.theirs + name, ours=self.ours + below, facts=facts
    )

  def stack(self, theirs: str, ours: str) -> Iterator["_Place"]:
    """Yields the place of each layer."""
    assert ours == "blocks", ours
    numbered = "{i}" in theirs
    for i in range(self.tower["depth"]) if numbered else (None,):
      name = self.theirs + theirs.format(**self.facts, i=i)
      yield dataclasses.replace(self, theirs=name, layer=i, stacked=True)

  def stages(self, theirs: str, ours: str) -> Iterator["_Place"]:
    """Yields the place of each block of a ResNet; its first is `first`."""
    assert ours == "blocks", ours
    for stage, depth in enumerate(self.tower["depths"], start=1):
      for block in range(depth):
        name = theirs.format(**self.facts, stage=stage, block=block)
        yield dataclasses.replace(
          self,
          theirs=self.theirs + name,
          ours=f"{self.ours}{paths.block(stage, block + 1)}/",
          facts={**self.facts, "first": block == 0},
        )


_EXPAND = {"part": _Place.part, "stack": _Place.stack, "stages": _Place.stages}
