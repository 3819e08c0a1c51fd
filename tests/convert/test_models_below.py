"""What is said of a directory that holds models and is none."""

import pytest

from clip_jax import errors
from clip_jax.convert import opening


def _refusal(path):
  with pytest.raises(errors.UserError, match="in no known format") as raised:
    opening.recognise(path)
  return str(raised.value)


@pytest.mark.parametrize(
  ("files", "given", "named"),
  [
    # A run of open_clip, by itself, by a part and by what holds it.
    (("RUN/checkpoints/epoch_2.pt", "RUN/checkpoints/epoch_10.pt"), "RUN", -1),
    (("RUN/checkpoints/epoch_2.pt", "RUN/checkpoints/epoch_10.pt"), "", -1),
    (("epoch_9.pt", "epoch_10.pt", "epoch_latest.pt"), "", -1),
    # One of HuggingFace's trainer, and a state beside a model.
    (
      ("checkpoint-90/model.safetensors", "checkpoint-100/model.safetensors"),
      "",
      -1,
    ),
    (("model.pt", "a_optimizer.pt", "z_scheduler.pt"), "", 0),
    (("epoch_3.pt", "optimizer_epoch_9.pt"), "", 0),
    (
      ("checkpoint-5/pytorch_model.bin", "checkpoint-5/optimizer.pt"),
      "checkpoint-5",
      0,
    ),
    (("checkpoints/epoch_1.pt", "a/z.pt"), "", 0),
  ],
)
def test_the_newest_file_of_a_run_is_named(tmp_path, files, given, named):
  for file in files:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
  said = _refusal(tmp_path / given)
  assert f"give its own path, {str(tmp_path / files[named])!r}" in said
  assert ("more lie beside" in said) == ("epoch_10" in str(files))


def test_configs_of_several_models_above_do_not_hide_what_is_wrong(tmp_path):
  config = '{"vision_cfg": {}, "text_cfg": {}}'
  for name in ("ViT-B-16.json", "ViT-B-32.json"):
    (tmp_path / name).write_text(config)
  (tmp_path / "notes.txt").write_text("Not a model.")
  assert "is a file in no known format" in _refusal(tmp_path / "notes.txt")
  (tmp_path / "below").mkdir()
  assert "is in no known format" in _refusal(tmp_path / "below")


def test_a_directory_of_runs_is_told_from_one_of_pictures(tmp_path):
  for step in (90, 100):
    model = tmp_path / "out" / f"checkpoint-{step}"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "clip"}')
  said = _refusal(tmp_path / "out")
  assert f"{str(tmp_path / 'out' / 'checkpoint-100')!r} (1 more lie" in said
  (tmp_path / "photos" / "cat").mkdir(parents=True)
  (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(b"x")
  (tmp_path / "photos" / "features.npz").write_bytes(b"x")
  assert "give its own path" not in _refusal(tmp_path / "photos")
