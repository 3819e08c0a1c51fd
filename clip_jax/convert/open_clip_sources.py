"""Where each field of an OpenCLIP model comes from, for the report."""

from typing import Any

from clip_jax.convert import report as report_lib

# Our fields by those of theirs that say them; all others are defaults.
_IMAGE = {
  "image_size": ("image_size",),
  "patch_size": ("patch_size",),
  "heads": ("head_width",),
  "depths": ("layers",),
  "activation": ("act_kwargs",),
  "norm_epsilon": ("norm_kwargs",),
  "pooling": ("pool_type",),
  "norm_after_pool": ("final_ln_after_pool",),
  "pre_norm": ("no_ln_pre",),
  "patch_dropout": ("patch_dropout",),
}
_TEXT = {
  "context_length": ("context_length",),
  "vocab_size": ("vocab_size",),
  "heads": ("heads",),
  "activation": ("act_kwargs",),
  "norm_epsilon": ("norm_kwargs",),
  "causal": ("no_causal_mask",),
  "pooling": ("pool_type",),
  "eos_id": ("eos_id",),
}
# Of a text tower that is named.
_BERT = {"context_length": ("context_length",), "pooling": ("hf_pooler_type",)}
# Of the weights' shapes.
_UNSAID = ("width", "depth", "mlp_dim")


def note(
  spec: dict[str, Any], config: dict[str, Any], report: report_lib.Report
) -> None:
  """Notes what the weights do not say.

  Args:
    spec: the whole description.
    config: `open_clip_config.json`, in which every field has been checked.
    report: takes the fields that it does not have yet.
  """
  model = config["model_cfg"]
  vision, text = model["vision_cfg"], model["text_cfg"]
  quick = "quick_gelu" in model
  parts = {
    "image": (vision, _IMAGE, vision.get("timm_model_name")),
    "text": (text, _TEXT, None),
  }
  if text.get("hf_model_name"):
    parts["text"] = (text, _BERT, text["hf_model_name"])
  for part, (given, names, whole) in parts.items():
    for field, value in spec[part].items():
      if field in _UNSAID or f"{part}.{field}" in report.inferred:
        continue
      said = any(name in given for name in names.get(field, ()))
      said = said or (field == "activation" and quick and not whole)
      # A tower of another library's is all in its name.
      said = said or (whole is not None and field not in names)
      said = said or (part == "image" and bool(whole))
      report.infer(f"{part}.{field}", value, "config" if said else "format")
  for field, value in spec["tokenizer"].items():
    if f"tokenizer.{field}" not in report.inferred:
      arguments = text.get("tokenizer_kwargs") or {}
      said = field == "cleaning" and "clean" in arguments
      report.infer(f"tokenizer.{field}", value, "config" if said else "format")
  for field, name in (
    ("init_logit_scale", "init_logit_scale"),
    ("init_logit_bias", "init_logit_bias"),
    ("embed_norm", None),
    ("max_logit_scale", None),
  ):
    source = "config" if name in model else "format"
    report.infer(field, spec[field], source)
