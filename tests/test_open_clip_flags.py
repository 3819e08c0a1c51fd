"""What people who come from open_clip write, and what they are told."""

import pathlib
import re

import pytest

import clip_jax
from clip_jax import config as config_lib
from clip_jax import errors, other_trainers
from clip_jax.cli import parser
from clip_jax.convert import missing_model
from clip_jax.data import schemes

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "open_clip.md"

# All flags of open_clip_train/params.py, in its order (June 2026).
OPEN_CLIPS = """
train-data train-data-upsampling-factors val-data train-num-samples
val-num-samples dataset-type audio-ext pretrained-audio audio-fill
audio-trunc audio-fusion audio-int16-normalize audio-zeroshot-dataset
audio-zeroshot-split audio-zeroshot-audio-key audio-zeroshot-target-key
audio-zeroshot-class-key audio-zeroshot-template audio-zeroshot-workers
audio-zeroshot-multiprocessing-context audio-multiprocessing-context
dataset-resampled csv-separator csv-img-key csv-caption-key image-key
max-image-pixels text-key json-text-key json-text-key-probs imagenet-val
imagenet-v2 cache-dir logs log-local name workers batch-size epochs
epochs-cooldown lr beta1 beta2 eps wd momentum warmup opt opt-kwargs
opt-fallback-list text-layer-decay image-layer-decay visual-layer-decay
audio-layer-decay wd-exclude text-pooler-own-group use-bn-sync
skip-scheduler lr-scheduler lr-cooldown-end lr-cooldown-power
save-frequency save-most-recent zeroshot-frequency val-frequency
val-retrieval-chunk-size val-retrieval-precision resume precision model
pretrained pretrained-image lock-image lock-image-unlocked-groups
lock-image-freeze-bn-stats image-mean image-std image-interpolation
image-resize-mode aug-cfg grad-checkpointing local-loss gather-with-grad
force-context-length force-image-size force-quick-gelu force-patch-dropout
force-custom-text torchcompile torchcompile-strategy torchcompile-backend
torchcompile-mode accum-freq device dist-url dist-backend report-to
wandb-notes wandb-project-name debug copy-codebase ddp-static-graph fsdp
fsdp-no-reshard-after-forward fsdp-offload-cpu fsdp-checkpoint
no-set-device-rank seed grad-clip-norm lock-text lock-text-unlocked-layers
lock-text-freeze-layer-norm log-every-n-steps log-metric-every-n-steps
train-loss-ema-samples coca-caption-loss-weight
coca-contrastive-loss-weight remote-sync remote-sync-frequency
remote-sync-protocol delete-previous-checkpoint distill-model
distill-pretrained use-bnb-linear siglip loss-dist-impl use-naflex
force-naflex-vision naflex-num-train-image-tokens naflex-patch-sizes
naflex-patch-size-probs naflex-seq-lens naflex-seq-len-probs
naflex-max-tokens-per-batch naflex-max-text-tokens naflex-batch-divisor
naflex-loss-scale length-bucketing bucket-pool bucket-chunk
bucket-prefetch-pools naflex-pad-multiple text-pad-multiple
"""


def test_all_flags_of_a_command_are_translated_at_once(fails):
  said = fails(
    *("train", "--train-data", "/data/{000..331}.tar", "--lr=5e-4"),
    *("--train-num-samples", "100", "--lock_image", "--grad-checkpointing"),
    *("--workdir", "w"),
    code=2,
  )
  *_, error, data, rate, samples, locked, remat = said.splitlines()
  assert "unknown flag '--train-data': it is one of open_clip's" in error
  for line, theirs, ours in (
    (data, "--train-data", "--config.data.train=wds:/data/{000..331}.tar, or"),
    (rate, "--lr", "--config.optim.peak_lr=5e-4"),
    (samples, "--train-num-samples", "nothing: the data are counted"),
    (locked, "--lock_image", "--config.optim.frozen=^image"),
    (
      remat,
      "--grad-checkpointing",
      "--config.model_overrides.image.remat=full",
    ),
  ):
    assert line.split()[0] == theirs
    assert line.split(maxsplit=1)[1].startswith(ours)


def test_every_flag_of_open_clip_is_known():
  known = parser.make_parser()[1]["train"].flags
  assert not [
    flag
    for flag in OPEN_CLIPS.split()
    if flag not in other_trainers.FLAGS and f"--{flag}" not in known
  ]


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ("accum_freq=2", "--config.micro_batches=2, parts of the batch."),
    ("learning_rate=1e-4", "--config.optim.peak_lr=1e-4."),
    ("lr=1e-4", "--config.optim.peak_lr=1e-4."),
    ("optim.lr=1e-4", "--config.optim.peak_lr=1e-4."),
    ("num_train_epochs=3", "--config.epochs=3."),
    ("num_workers=4", "--config.data.workers=4."),
    ("input.batch_size=64", "--config.batch_size=64."),
    ("weight_decay=0.1", "--config.optim.weight_decay=0.1, which the"),
    ("warmup=100", "--config.optim.warmup_steps=100."),
    ("random_seed=1", "--config.seed=1."),
    ("remat=true", "image.remat=full --config.model_overrides.text.remat=full"),
    ("training.seed=1", "Did you mean 'seed'?"),
    ("keep=1", "Did you mean 'checkpoint.keep'?"),
    ("kind=x", "Did you mean 'objective.kind' or 'loss.kind'?"),
    ("eval.NAME=1", "Did you mean 'evals.NAME.*'?"),
    ("optimizer.beta1=0.9", "Did you mean 'optim.beta1'?"),
    ("data.batch_size=3", "Did you mean 'batch_size'?"),
    # The data's temperature mixes sources.
    ("loss.temperature=0.07", "model_overrides.init_logit_scale=N, one over"),
    ("loss.name=sigmoid", "loss.method, loss.kind."),
    ("save_total_limit=5", "--config.checkpoint.keep=5."),
    ("betas=(0.9, 0.95)", "--config.optim.beta1=BETA1 --config.optim.beta2="),
    ("optim.beta2=(0.9, 0.98)", "It is one number (Adam's beta2"),
  ],
)
def test_config_fields_of_other_trainers_are_translated(given, said):
  with pytest.raises(errors.UserError, match=re.escape(said)):
    config_lib.apply_override(config_lib.default_config(), given)


def test_fields_of_other_trainers_in_a_config_file_are_translated(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from clip_jax import config\n\ndef get_config():\n"
    "  c = config.default_config()\n  c.optim.lr = 1e-3\n  return c\n"
  )
  with pytest.raises(errors.UserError, match=r"--config\.optim\.peak_lr=VALUE"):
    config_lib.load(path)


def test_flags_of_other_trainers_are_translated(fails):
  said = fails(
    *("train", "--learning_rate", "1e-4", "--workdir", "w"),
    code=2,
  )
  assert "it is one of other trainers'" in said
  assert "--config.optim.peak_lr=1e-4" in said
  assert "--workdir w" not in said  # That flag is ours, too.


def test_other_flags_keep_their_hints(fails):
  assert "--config.steps=5?" in fails("train", "--steps=5", code=2)
  said = fails("eval", "m", "--lr=1", code=2)  # Not a training.
  assert "open_clip" not in said


def _words(text):
  return re.findall(r"(?<!\S)--[a-z][\w.-]*", text)


def test_every_flag_that_is_named_is_one():
  known = parser.make_parser()[1]["train"].flags
  texts = [*other_trainers.FLAGS.values(), *other_trainers.MORE.values()]
  for text in texts:
    for word in _words(text):
      field = word.removeprefix("--config.")
      assert (
        word in known
        or field in config_lib.SCHEMA
        or field.startswith(("evals.", "model_overrides."))
        or (field == "optim.frozen:")
      ), text


def test_the_page_has_every_flag_with_the_same_words():
  rows = {}
  for line in PAGE.read_text().splitlines():
    if line.startswith("| `--"):
      theirs, ours = line.strip("| ").split(" | ")
      ours = re.sub(r"\[[^]]*\]\(([^)#]*)(?:#[^)]*)?\)", r"docs/\1", ours)
      for flag in theirs.split(", "):
        rows[flag.strip("`-")] = ours.replace("`", "").strip()
  assert rows == {
    flag: text.replace("{}", "VALUE")
    for flag, text in other_trainers.FLAGS.items()
  }


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("create_model_and_transforms", r"here it is clip_jax\.load"),
    ("get_tokenizer", r"here it is clip_jax\.load\(MODEL\)\.tokenize"),
    ("list_pretrained", "hf-hub:"),
    ("nothing", "has no attribute 'nothing'$"),
  ],
)
def test_names_of_open_clip_are_translated(name, said):
  with pytest.raises(AttributeError, match=said):
    getattr(clip_jax, name)


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("local-dir:models/mine", "by its path alone: models/mine."),
    (
      "ViT-B-32/laion2b_s34b_b79k",
      "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ),
    ("ViT-B-32/openai", "create_model('ViT-B-32')"),
    ("ViT-L-14-336/openai", "hf-hub:openai/clip-vit-large-patch14-336."),
    ("ViT-g-14/none_of_these", "hf-hub:ORG/NAME."),
    ("EVA02-B-16/merged2b_s8b_b131k", "EVA is not built in"),
    ("coca_ViT-B-32", "CoCa is not built in"),
  ],
)
def test_models_are_named_as_open_clip_names_them(name, said):
  error = missing_model.error(pathlib.Path(name), "a MODEL")
  assert said in str(error)
  if "laion" in name:
    assert "openai/" not in str(error)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ("precision=amp_bf16", "'amp_bf16' elsewhere is 'bfloat16' here."),
    ("loss.kind=siglip", "'siglip' elsewhere is 'sigmoid' here."),
    ("loss.method=siglip", "two_level.$"),
    ("optim.schedule=const", "'const' elsewhere is 'constant' here."),
    (
      "optim.schedule=const-cooldown",
      "elsewhere is 'constant' with optim.cooldown_steps here.",
    ),
    (
      "optim.schedule=inverse_sqrt",
      "'inverse_sqrt' elsewhere is 'rsqrt' with optim.rsqrt_steps here.",
    ),
  ],
)
def test_values_of_open_clip_are_refused_with_what_to_write(change, said):
  config = config_lib.default_config()
  config.data.train, config.steps = "builtin:digits/train", 1
  with pytest.raises(errors.UserError, match=said):
    config_lib.with_overrides(config_lib.check(config), [change])


@pytest.mark.parametrize(
  ("address", "said"),
  [
    ("csv:a.csv?csv-img-key=url", "Unknown option of csv: 'csv-img-key'"),
    ("csv:a.csv?Image=url", "Did you mean 'image'"),
    ("wds:a.tar::b.tar", r"written wds:\{a\.tar,b\.tar\}"),
    (
      "wds:{0..1}.tar::b.tar",
      r"written \{\"wds:\{0\.\.1\}\.tar\": 1, \"wds:b\.tar\": 1\} for",
    ),
    ("a-{000..331}.tar", r"Did you mean wds:a-\{000\.\.331\}\.tar\?"),
    ("a.tsv", r"Did you mean csv:a\.tsv\?"),
    ("pets", r"no scheme\. Put one"),
  ],
)
def test_addresses_of_open_clip_are_refused_with_what_to_write(address, said):
  with pytest.raises(errors.UserError, match=said):
    schemes.parse_address(address)
