"""What a conversion does to the places that it reads from and writes to."""

import dataclasses
import errno
import json
import os

import numpy as np
import pytest

import model_kinds
from clip_jax import convert, errors
from clip_jax.convert import destinations, engine, opening, sameness
from clip_jax.convert.engine import family
from clip_jax.convert.engine import names as names_lib
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import model_dir
from clip_jax.convert.portable import Options, Portable
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

TINY = {
  "embed_dim": 12,
  "image": {"width": 16, "image_size": 8, "depth": 1, "heads": 2},
  "text": {"width": 24, "depth": 1, "heads": 3, "vocab_size": 30},
}


@pytest.fixture
def model(tmp_path):
  """A model directory with random weights, and its path."""
  spec = engine.resolve(variants.spec("tiny-vit", TINY))
  rng = np.random.default_rng(0)
  leaves = {
    path: Tensor.from_array(rng.normal(size=shape).astype(np.float32))
    for path, shape in engine.leaf_shapes(spec).items()
  }
  path = tmp_path / "models" / "ours"
  portable = Portable(
    family.as_json(spec),
    leaves,
    convert.Report("test"),
    extras={"kept": Tensor.from_array(np.arange(3))},
    files={"vocab.txt": b"a\nb\n"},
  )
  model_dir.write(portable, path)
  return path


def _names(path):
  return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("destination", ["ours", "."])
def test_a_destination_that_is_or_holds_the_source_is_refused(
  model, destination
):
  before = _names(model.parent)
  with pytest.raises(errors.UserError, match="is or holds the source"):
    convert.convert(
      model, model.parent / destination, to="clip-jax", overwrite=True
    )
  assert _names(model.parent) == before and len(_names(model)) == 4


@pytest.mark.parametrize(
  ("make", "to", "name"),
  [
    (model_kinds.clip_directory, "openai", "b32"),
    (model_kinds.siglip_directory, "big-vision", "v1.0"),
  ],
)
def test_a_file_is_known_by_its_content_where_its_name_says_nothing(
  tmp_path, make, to, name
):
  ours = make(tmp_path / "ours")
  convert.convert(ours, tmp_path / name, to=to)
  told = {"activation": "quick_gelu", "heads": (1, 1)} if to == "openai" else {}
  found = convert.open_model(tmp_path / name, options=Options(**told))
  leaf = "params/log_scale"
  want = convert.open_model(ours).leaves[leaf].read()
  np.testing.assert_array_equal(found.leaves[leaf].read(), want)


@pytest.mark.parametrize("to", ["open-clip", "huggingface", "clip-jax"])
def test_a_directory_is_not_named_like_a_file(model, tmp_path, to):
  with pytest.raises(errors.UserError, match="is a directory; give a name"):
    convert.convert(model, tmp_path / "epoch_7.pt", to=to)
  assert not (tmp_path / "epoch_7.pt").exists()


def test_a_file_with_the_suffix_of_another_kind_is_refused(model, tmp_path):
  with pytest.raises(errors.UserError, match=r"\.npz.* 'openai' in \.pt; give"):
    convert.convert(model, tmp_path / "a.npz", to="openai")
  assert not (tmp_path / "a.npz").exists()


def test_a_part_of_a_model_names_the_model(model):
  with pytest.raises(errors.UserError) as caught:
    convert.open_model(model / "clip_jax.json")
  assert str(caught.value).endswith(f"the model {str(model)!r}: give that.")


def test_only_a_model_is_overwritten(model, tmp_path):
  mine = tmp_path / "mine"
  mine.mkdir()
  (mine / "notes.txt").write_text("precious")
  with pytest.raises(errors.UserError, match="is no model"):
    convert.convert(model, mine, to="clip-jax", overwrite=True)
  assert (mine / "notes.txt").read_text() == "precious"


def test_what_came_meanwhile_stays(model, tmp_path, monkeypatch):
  check = sameness.check_written
  out = tmp_path / "out"

  def meanwhile(*arguments):
    check(*arguments)
    out.mkdir()
    (out / "theirs.txt").write_text("precious")

  monkeypatch.setattr(sameness, "check_written", meanwhile)
  with pytest.raises(errors.UserError, match="created by something else"):
    convert.convert(model, out, to="clip-jax")
  assert _names(out) == ["theirs.txt"]
  assert _names(tmp_path) == ["models", "out"]


def test_the_old_model_stays_when_the_new_cannot_take_its_name(
  model, tmp_path, monkeypatch
):
  out = tmp_path / "out"
  convert.convert(model, out, to="clip-jax")
  before = (out / model_dir.DESCRIPTION).read_bytes()
  rename = os.rename

  def failing(source, destination):
    if destination == out and os.path.basename(source) == "out":
      raise OSError(errno.ENOSPC, "No space left on device")
    rename(source, destination)

  monkeypatch.setattr(os, "rename", failing)
  with pytest.raises(OSError, match="No space"):
    convert.convert(model, out, to="clip-jax", overwrite=True)
  assert (out / model_dir.DESCRIPTION).read_bytes() == before
  assert _names(tmp_path) == ["models", "out"]


def test_a_destination_without_a_name_is_understood(
  model, tmp_path, monkeypatch
):
  (tmp_path / "empty").mkdir()
  monkeypatch.chdir(tmp_path / "empty")
  convert.convert(model, ".", to="clip-jax")
  assert model_dir.DESCRIPTION in _names(tmp_path / "empty")


def test_a_dry_run_looks_at_the_destination_too(model, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="exists"):
    convert.convert(
      model,
      tmp_path / "file",
      to="clip-jax",
      options=Options(headers_only=True),
    )


def test_whole_numbers_are_no_parameters(model):
  weights = model / model_dir.WEIGHTS
  tensors = safetensors_file.read(weights).tensors
  entries = [engine.Entry(path, (engine.Slot(path),)) for path in tensors]
  spec = convert.open_model(model).spec
  small = {
    path: Tensor.from_array(tensor.read().astype(np.int8))
    for path, tensor in tensors.items()
  }
  with pytest.raises(errors.UserError, match="holds int8"):
    engine.to_ours(
      entries, small, spec, report=convert.Report("x"), name="small"
    )


def test_a_writer_that_changes_the_meaning_is_caught(
  model, tmp_path, monkeypatch
):
  write = model_dir.write

  def wrong(portable, destination):
    write(portable, destination)
    path = destination / model_dir.DESCRIPTION
    path.write_text(path.read_text().replace('"quick_gelu"', '"gelu"'))

  known = dataclasses.replace(opening.FORMATS["clip-jax"], write=wrong)
  monkeypatch.setitem(opening.FORMATS, "clip-jax", known)
  with pytest.raises(errors.UserError, match="activation is 'quick_gelu'"):
    convert.convert(model, tmp_path / "out", to="clip-jax")
  assert _names(tmp_path) == ["models"]


@pytest.mark.parametrize("number", [0, np.nan, np.inf])
def test_no_number_is_written_otherwise_and_none_is_infinite(
  number, model, tmp_path, monkeypatch
):
  """The last number of every array in turn, which is a layer's last, too."""
  write = model_dir.write
  source = opening.open_model(model)
  is_finite = np.isfinite(number)

  def changed(path):
    array = source.leaves[path].read().copy()
    last = array.reshape(-1)[-1]
    array.reshape(-1)[-1] = np.nextafter(last, np.inf) if is_finite else number
    leaves = source.leaves | {path: Tensor.from_array(array)}
    return dataclasses.replace(source, leaves=leaves)

  for i, path in enumerate(source.leaves):
    read = model
    if is_finite:
      known = dataclasses.replace(
        opening.FORMATS["clip-jax"],
        write=lambda _, to, p=path: write(changed(p), to),
      )
      monkeypatch.setitem(opening.FORMATS, "clip-jax", known)
      message = f"{path} .*did not come back as it was written"
    else:
      read = tmp_path / "models" / f"bad {i}"
      write(changed(path), read)
      message = f"NaN or infinity in what becomes {path}"
    with pytest.raises(errors.UserError, match=message):
      convert.convert(read, tmp_path / "out", to="clip-jax")
  assert _names(tmp_path) == ["models"]


def test_a_model_directory_comes_back_whole(model):
  again = convert.open_model(model)
  assert again.files == {"vocab.txt": b"a\nb\n"}
  np.testing.assert_array_equal(again.extras["kept"].read(), np.arange(3))


@pytest.mark.parametrize(
  "name", [model_dir.WEIGHTS, model_dir.EXTRAS, "vocab.txt"]
)
def test_a_changed_file_is_noticed(model, name):
  data = bytearray((model / name).read_bytes())
  data[-1] ^= 1
  (model / name).write_bytes(data)
  with pytest.raises(errors.UserError, match=f"{name} is not the file"):
    convert.open_model(model)
  (model / name).unlink()
  with pytest.raises(errors.UserError, match=name):
    convert.open_model(model)


def _device(path):
  path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, _device, os.mkdir])
def test_what_is_no_file_is_neither_waited_for_nor_read(model, make):
  (model / "vocab.txt").unlink()
  make(model / "vocab.txt")
  with pytest.raises(errors.UserError, match=r"vocab\.txt is not a file; put"):
    convert.open_model(model)


RUN_SO = {
  "image": {"remat": "full", "patch_dropout": 0.5},
  "text": {"scan": False, "unroll": 1},
}


def test_a_description_from_before_says_how_its_model_is_run(model):
  path = model / model_dir.DESCRIPTION
  described = json.loads(path.read_text())
  spec, described["version"] = described["spec"], 1
  del described["execution"]
  for part, fields in RUN_SO.items():
    spec[part] |= fields
  path.write_text(json.dumps(described))
  read = convert.open_model(model)
  assert read.execution["image"] == RUN_SO["image"]
  assert read.execution["text"] == {"scan": False}  # The rest is the default.
  assert not variants.EXECUTION.keys() & {*read.spec["image"]}
  # Its fingerprint, which indexes hold, is of the module.
  module = variants.create_model(read.spec, execution=read.execution)
  assert module == variants.create_model(spec)
  convert.convert(model, model.parent / "new", to="clip-jax")
  again = convert.open_model(model.parent / "new")
  assert (again.spec, again.execution) == (read.spec, read.execution)


BROKEN = [
  ("execution", 5),
  ("execution", {"image": {"remt": "full"}}),
  ("execution", {"text": {"scan": "no"}}),
  ("files", []),
  ("files", {"..": "x"}),
  ("files", {"a/b": "x"}),
  ("files", {}),
  ("layer_dtypes", None),
  ("layer_dtypes", {"params/log_scale": 3}),
  ("layer_dtypes", {"params/log_scale": ["nonsense"]}),
  ("layer_dtypes", {"params/log_scale": ["float32"]}),
  *(
    ("layer_dtypes", {"params/text/encoder/blocks/ln_1/bias": kinds})
    for kinds in (
      ["O"],
      ["int8"],
      ["float16"],
      ["float32"] * 2,
      "float32",
      [{}],
    )
  ),
  ("source", 1),
  ("source", {"format": 5}),
  ("source", {"format": "huggingface", "dialect": 5}),
  ("source", {"resized": [16]}),
  ("spec", []),
  ("spec", {"image": "x", "text": {}}),
  ("spec.image", "x"),
  ("spec.image", None),
  ("spec.image.patch_size", 0),
  ("spec.image.patch_size", "8"),
  ("spec.image.width", None),
  ("spec.image.width", 2**62),
  ("spec.text.mlp_dim", 2**62),
  (
    "spec.image",
    {"kind": "resnet", "image_size": 32, "width": 16, "depths": [10**4] * 4},
  ),
  ("spec.image.depth", -1),
  ("spec.image.class_position", 1.5),
  ("spec.image.drop_edge", None),
  ("spec.image.pre_norm", []),
  ("spec.image.kind", "vat"),
  ("spec.image.surprise", 1),
  ("spec.text.heads", 0),
  ("spec.text.vocab_size", 10**30),
  ("spec.image_mean", None),
  ("spec.embed_dim", "x"),
  ("spec.tokenizer", 5),
  ("version", 99),
]


@pytest.mark.parametrize(("field", "value"), BROKEN)
def test_a_description_without_sense_is_a_clear_error(model, field, value):
  path = model / model_dir.DESCRIPTION
  described = json.loads(path.read_text())
  node = described
  *parents, last = field.split(".")
  for parent in parents:
    node = node[parent]
  node[last] = value
  path.write_text(json.dumps(described))
  with pytest.raises(errors.UserError):
    convert.open_model(model)


@pytest.mark.parametrize("known", opening.FORMATS)
def test_what_is_of_another_format_than_is_told_is_a_clear_error(
  tmp_path, known
):
  file = tmp_path / "a.txt"
  file.write_text("Neither a directory nor weights.")
  for path in (tmp_path, file):
    with pytest.raises(errors.UserError):
      convert.open_model(path, source_format=known)


@pytest.mark.parametrize(
  "field", ["activation", "norm_epsilon", "pooling", "causal"]
)
def test_nothing_about_a_model_is_a_default(model, field):
  path = model / model_dir.DESCRIPTION
  described = json.loads(path.read_text())
  del described["spec"]["text"][field]
  path.write_text(json.dumps(described))
  with pytest.raises(errors.UserError, match=f"text's {field} must be given"):
    convert.open_model(model)


def test_a_training_is_never_overwritten(model, tmp_path):
  workdir = tmp_path / "run"
  (workdir / "checkpoints").mkdir(parents=True)
  (workdir / "config.json").write_text("{}")
  with pytest.raises(errors.UserError, match="workdir of a training"):
    convert.convert(model, workdir, to="clip-jax", overwrite=True)
  assert _names(workdir) == ["checkpoints", "config.json"]


def test_flags_that_change_nothing_are_told(model):
  told = {
    **{"activation": "gelu", "heads": (2, 3), "pooling": "mean"},
    **{"tokenizer": "mc4", "weights": "model_ema"},
  }
  read = opening.open_model(model, options=Options(**told))
  assert any(
    " and ".join(f"--{name}" for name in told) + " changed nothing" in warning
    for warning in read.report.warnings
  )
  assert not opening.open_model(model).report.warnings


def test_a_bias_that_stays_although_it_should_go_is_told(model, tmp_path):
  options = Options(drop_logit_bias=True)
  for bias, told in ((None, False), (-10.0, True)):
    read = convert.open_model(model)
    spec = {**read.spec, "init_logit_bias": bias}
    leaf = Tensor.from_array(np.float32(-9))
    leaves = {**read.leaves, **({"params/logit_bias": leaf} if told else {})}
    source = tmp_path / f"source {bias}"
    model_dir.write(Portable(spec, leaves, read.report), source)
    report = convert.convert(
      source, tmp_path / f"out {bias}", to="clip-jax", options=options
    )
    assert any("--drop-logit-bias" in x for x in report.warnings) == told


def test_a_shape_takes_no_memory_however_large_the_config_says_it_is():
  spec = {
    "image": {"width": 2**24, "heads": 1, "patch_size": 1, "image_size": 1},
  }
  names = names_lib.Names(
    {"whole": "part . image tower", "tower": "in_proj fused qkv/q,k,v"}
  )
  shape = (2**24, 1, 2**24)
  (kernel, bias) = names.entries(spec)
  shapes = {slot.path: shape for slot in kernel.slots}
  shapes |= {slot.path: shape[1:] for slot in bias.slots}
  assert engine.their_shape(kernel, shapes) == (3 * 2**24, 2**24)
  assert engine.their_shape(bias, shapes) == (3 * 2**24,)


def test_an_image_size_beyond_all_memory_is_refused(model):
  options = Options(image_size=10**7, resize_method="bicubic")
  with pytest.raises(errors.UserError, match="more than 4096 pixels"):
    opening.open_model(model, options=options)


def test_a_damaged_description_is_the_news(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "clip", ')
  (tmp_path / "model.safetensors").write_bytes(b"")
  with pytest.raises(errors.UserError, match=r"config\.json.*JSON"):
    opening.open_model(tmp_path)


@pytest.mark.parametrize("place", ["file/below", "/proc/out"])
def test_a_place_that_cannot_be_written_is_told_by_its_own_name(
  tmp_path, place
):
  (tmp_path / "file").write_bytes(b"")
  wanted = f"Cannot write {tmp_path / place}: .*Give another destination"
  with (
    pytest.raises(errors.UserError, match=wanted),
    destinations.new(tmp_path / place, overwrite=False),
  ):
    pass
