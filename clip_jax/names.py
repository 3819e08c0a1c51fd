"""Lists of names that users choose from.

The config's schema and the command line read them without importing the code
behind each name; tests compare them with the tables of functions.
"""

PRECISIONS = ("bfloat16", "float32", "float64")
OPTIMIZERS = ("adafactor", "adamw", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant", "rsqrt")
INIT_SCHEMES = ("scaled", "openai")
# What training asks of a model, and those that end in no shared embedding.
OBJECTIVES = ("contrastive", "bow_contrastive", "bow", "lm")
PREDICTIVE_OBJECTIVES = ("bow", "lm")
LOSS_KINDS = ("sigmoid", "softmax")
LOSS_METHODS = ("auto", "dense", "gathered", "ring", "two_level")
DUPLICATES = ("ignore", "mask", "positive")
CAPTION_CHOICES = ("random", "first")
TEXT_LAYOUTS = ("auto", "packed", "buckets", "full")
TASKS = ("zero_shot", "retrieval")
# Tasks that train a classifier on image features, and the kinds of features.
PROBE_TASKS = ("linear_probe", "knn")
# Further ones of `clip-jax eval`, and one of runs in training.
FURTHER_TASKS = ("few_shot", "robustness", "groups")
TRAINING_TASKS = ("few_shot_lsr",)
FEATURES = ("pre_projection", "embedding")
# The tables of data sets that `clip-jax eval --suite` measures.
SUITE_GROUPS = ("paper27", "robustness", "retrieval", "more")
# OpenAI's models, whose figures are published.
OPENAI_MODELS = (
  *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
  *("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"),
)
# How retrieval counts another image's caption that equals the right one.
RETRIEVAL_DUPLICATES = ("hits", "misses")
# How logits become probabilities: over all labels, or for each label alone.
PROBABILITIES = ("softmax", "sigmoid")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
# Where metrics go besides the workdir.
TRACKERS = ("none", "wandb", "trackio")
INDEX_DTYPES = ("float32", "float16", "int8")
# The checkpoint formats that can be written.
TARGETS = ("clip-jax", "openai", "huggingface", "open-clip", "big-vision")
HEARTBEAT_SECONDS = 30  # Without a sign of life a process counts as lost.
DOCTOR_STEPS = 60  # Updates on one batch, unless `doctor --steps` says.
# How two images may be duplicates, the surest first.
DUPLICATE_KINDS = ("exact", "near", "semantic")
DUPLICATE_DISTANCE = 6  # Bits of 64, at most.
DUPLICATE_SIMILARITY = 0.95  # Cosine, at least.
# What becomes a query: words and bigrams that occur as often (paper, section
# 2.2), and bigrams of so many bits of pointwise mutual information; neither the
# paper nor MetaCLIP says how its own were computed (docs/curation.md).
TITLES = "titles:"  # Before a file of titles, of `data queries`.
QUERY_MIN_COUNT = 100
QUERY_MIN_PMI = 8.0
