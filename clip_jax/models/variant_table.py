"""The named models, as plain data.

Names are open_clip's, except that ViT-B-32, ViT-B-16, ViT-L-14 and
ViT-L-14-336 stand for OpenAI's releases, with the sigmoid approximation of
GELU; open_clip's models of these names, with the exact GELU, end in "-gelu".
"""

# ImageNet's mean and standard deviation, by which CLIPA normalises.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


_VOCAB_SIZE = 49408  # CLIP's byte pairs.


def _resnet(*, image_size, width, depths):
  return {
    "kind": "resnet",
    "image_size": image_size,
    "width": width,
    "depths": depths,
  }


def _vit(image_size, patch_size, **fields):
  return {
    "kind": "vit",
    "image_size": image_size,
    "patch_size": patch_size,
    **fields,
  }


def _transformer(**fields):
  return {
    "kind": "transformer",
    "context_length": 77,
    "vocab_size": _VOCAB_SIZE,
    "depth": 12,
    **fields,
  }


# Image towers by size: width, depth, heads and, if it is not four times the
# width, mlp_dim. Sources: paper (tables 19, 20); LAION's open_clip configs;
# Zhai et al., "Scaling vision transformers" (g, G) and "Getting ViT in shape"
# (SO400M); big_vision's `decode_variant` (g-opt).
_SIZES = {
  "S": {"width": 384, "depth": 12, "heads": 6},
  "M": {"width": 512, "depth": 12, "heads": 8},
  "B": {"width": 768, "depth": 12, "heads": 12},
  "B+": {"width": 896, "depth": 12, "heads": 14},
  "L": {"width": 1024, "depth": 24, "heads": 16},
  "SO400M": {"width": 1152, "depth": 27, "heads": 16, "mlp_dim": 4304},
  "H": {"width": 1280, "depth": 32, "heads": 16},
  "g": {"width": 1408, "depth": 40, "heads": 16, "mlp_dim": 6144},
  "gopt": {"width": 1536, "depth": 40, "heads": 16},
  "bigG": {"width": 1664, "depth": 48, "heads": 16, "mlp_dim": 8192},
  "e": {"width": 1792, "depth": 56, "heads": 16, "mlp_dim": 15_360},
}

# CLIP's text towers, most by the size of the image tower: one head for every 64
# features of the width, and a depth of 12 unless it is given.
_TEXT_SIZES = {
  "S alt": {"width": 256, "heads": 4, "depth": 10},
  "S": {"width": 384, "heads": 6},
  "B": {"width": 512, "heads": 8},
  "B+": {"width": 640, "heads": 10},
  "L": {"width": 768, "heads": 12},
  "H": {"width": 1024, "heads": 16, "depth": 24},
  "g": {"width": 1024, "heads": 16, "depth": 24},
  "bigG": {"width": 1280, "heads": 20, "depth": 32},
  "e": {"width": 1280, "heads": 20, "depth": 36},
}


def _clip(size, patch_size, image_size, activation="quick_gelu", text=""):
  """CLIP with a Vision Transformer; embed_dim is the text tower's width."""
  text = _TEXT_SIZES[text or size]
  return {
    "embed_dim": text["width"],
    "image": _vit(
      image_size, patch_size, **_SIZES[size], activation=activation
    ),
    "text": _transformer(**text, activation=activation),
  }


def _clipa(size, image_size):
  """CLIPA (Li et al. 2023): patches are averaged, then normalised.

  The vocabulary is BERT's. Texts are padded on the right, attended to in both
  directions and read at the last position. BERT's closing token is replaced by
  padding, but still takes a position.
  """
  text = _TEXT_SIZES[size]
  return {
    "embed_dim": text["width"],
    "image": _vit(
      image_size,
      14,
      **_SIZES[size],
      activation="gelu",
      pooling="gap",
      norm_after_pool=True,
      pre_norm=False,
    ),
    "text": _transformer(
      **text,
      context_length=32,
      vocab_size=32_000,
      activation="gelu",
      causal=False,
      pooling="last",
    ),
    "tokenizer": {
      "kind": "wordpiece",
      "cleaning": "whitespace_ftfy",
      "lowercase": True,
      "pad_id": 0,
      "start_id": 101,  # The id of [CLS] in bert-base-uncased.
      "end_id": 0,  # Padding in the place of [SEP].
      "file": "vocab.txt",
    },
    "image_mean": _IMAGENET_MEAN,
    "image_std": _IMAGENET_STD,
    "interpolation": "bilinear",
    "resize": "squash",
  }


# Sizes of the SentencePiece vocabularies: SigLIP's in English and in 109
# languages, and Gemma's, which SigLIP 2 uses.
_SIGLIP_VOCABULARIES = {"v1": 32_000, "i18n": 250_000, "v2": 256_000}


def _siglip(
  size, patch_size, image_size, vocabulary, *, context_length=64, **fields
):
  """SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025).

  All of them use the tanh approximation of GELU, as in training; open_clip runs
  version 1 and some models of version 2 with the exact GELU. The text tower of
  g-opt is that of SO400M.
  """
  numerics = {"activation": "gelu_tanh", "norm_epsilon": 1e-6}
  return {
    "embed_dim": _SIZES[size]["width"],
    "image": _vit(
      image_size,
      patch_size,
      **_SIZES[size],
      **numerics,
      pooling="map",
      class_token=False,
      pre_norm=False,
      patch_bias=True,
      drop_edge=image_size % patch_size > 0,
    ),
    "text": _transformer(
      **_SIZES["SO400M" if size == "gopt" else size],
      **numerics,
      context_length=context_length,
      vocab_size=_SIGLIP_VOCABULARIES[vocabulary],
      causal=False,
      pooling="last",
    ),
    "tokenizer": {
      "kind": "sentencepiece",
      "cleaning": "canonicalize",
      "pad_id": 0 if vocabulary == "v2" else 1,
      "start_id": None,
      "end_id": 1,
      "file": "tokenizer.model",
    },
    "image_projection": "none",
    "text_projection": "linear_bias",
    "init_logit_bias": -10.0,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "resize": "squash",
    **fields,
  }


_TINY_RESNET = _resnet(image_size=32, width=32, depths=(1, 1))
_TINY_TEXT = _transformer(width=64, heads=2, depth=2, context_length=16)

VARIANTS: dict[str, dict] = {
  # OpenAI's (paper, tables 19 and 20).
  "RN50": {
    "embed_dim": 1024,
    "image": _resnet(image_size=224, width=64, depths=(3, 4, 6, 3)),
    "text": _transformer(width=512, heads=8),
  },
  "RN101": {
    "embed_dim": 512,
    "image": _resnet(image_size=224, width=64, depths=(3, 4, 23, 3)),
    "text": _transformer(width=512, heads=8),
  },
  "RN50x4": {
    "embed_dim": 640,
    "image": _resnet(image_size=288, width=80, depths=(4, 6, 10, 6)),
    "text": _transformer(width=640, heads=10),
  },
  "RN50x16": {
    "embed_dim": 768,
    "image": _resnet(image_size=384, width=96, depths=(6, 8, 18, 8)),
    "text": _transformer(width=768, heads=12),
  },
  "RN50x64": {
    "embed_dim": 1024,
    "image": _resnet(image_size=448, width=128, depths=(3, 15, 36, 10)),
    "text": _transformer(width=1024, heads=16),
  },
  "ViT-B-32": _clip("B", 32, 224),
  "ViT-B-16": _clip("B", 16, 224),
  "ViT-L-14": _clip("L", 14, 224),
  "ViT-L-14-336": _clip("L", 14, 336),
  # The same under open_clip's names: MetaCLIP's, and DFN's except B/32.
  "ViT-B-32-quickgelu": _clip("B", 32, 224),
  "ViT-B-16-quickgelu": _clip("B", 16, 224),
  "ViT-L-14-quickgelu": _clip("L", 14, 224),
  # MetaCLIP's and DFN's larger ones.
  "ViT-H-14-quickgelu": _clip("H", 14, 224),
  "ViT-H-14-378-quickgelu": _clip("H", 14, 378),
  "ViT-bigG-14-quickgelu": _clip("bigG", 14, 224),
  # LAION's and DataComp's.
  "ViT-B-32-gelu": _clip("B", 32, 224, "gelu"),
  "ViT-B-32-256": _clip("B", 32, 256, "gelu"),
  "ViT-B-16-gelu": _clip("B", 16, 224, "gelu"),
  "ViT-B-16-plus-240": _clip("B+", 16, 240, "gelu"),
  "ViT-L-14-gelu": _clip("L", 14, 224, "gelu"),
  "ViT-H-14": _clip("H", 14, 224, "gelu"),
  "ViT-g-14": _clip("g", 14, 224, "gelu"),
  "ViT-bigG-14": _clip("bigG", 14, 224, "gelu"),
  # open_clip's other sizes, most of them for runs of one's own.
  "ViT-S-32": _clip("S", 32, 224, "gelu"),
  "ViT-S-16": _clip("S", 16, 224, "gelu"),
  "ViT-S-32-alt": _clip("S", 32, 224, "gelu", text="S alt"),
  "ViT-S-16-alt": _clip("S", 16, 224, "gelu", text="S alt"),
  "ViT-M-32": _clip("M", 32, 224, "gelu", text="B"),
  "ViT-M-16": _clip("M", 16, 224, "gelu", text="B"),
  "ViT-M-32-alt": _clip("M", 32, 224, "gelu", text="S"),
  "ViT-B-32-plus-256": _clip("B+", 32, 256, "gelu"),
  "ViT-B-16-plus": _clip("B+", 16, 224, "gelu"),
  "ViT-L-16": _clip("L", 16, 224, "gelu"),
  "ViT-L-16-320": _clip("L", 16, 320, "gelu"),
  "ViT-L-14-280": _clip("L", 14, 280, "gelu"),
  "ViT-H-16": _clip("H", 16, 224, "gelu"),
  "ViT-H-14-378": _clip("H", 14, 378, "gelu"),
  "ViT-e-14": _clip("e", 14, 224, "gelu"),
  # CLIPA's.
  "ViT-L-14-CLIPA": _clipa("L", 224),
  "ViT-L-14-CLIPA-336": _clipa("L", 336),
  "ViT-H-14-CLIPA": _clipa("H", 224),
  "ViT-H-14-CLIPA-336": _clipa("H", 336),
  "ViT-bigG-14-CLIPA": _clipa("bigG", 224),
  "ViT-bigG-14-CLIPA-336": _clipa("bigG", 336),
  # SigLIP's. 384 is no multiple of 14: the last six pixels are not seen.
  "ViT-B-16-SigLIP": _siglip("B", 16, 224, "v1"),
  "ViT-B-16-SigLIP-256": _siglip("B", 16, 256, "v1"),
  "ViT-B-16-SigLIP-384": _siglip("B", 16, 384, "v1"),
  "ViT-B-16-SigLIP-512": _siglip("B", 16, 512, "v1"),
  "ViT-B-16-SigLIP-i18n-256": _siglip("B", 16, 256, "i18n"),
  "ViT-L-16-SigLIP-256": _siglip("L", 16, 256, "v1"),
  "ViT-L-16-SigLIP-384": _siglip("L", 16, 384, "v1"),
  "ViT-SO400M-14-SigLIP": _siglip("SO400M", 14, 224, "v1", context_length=16),
  "ViT-SO400M-14-SigLIP-378": _siglip("SO400M", 14, 378, "v1"),
  "ViT-SO400M-14-SigLIP-384": _siglip("SO400M", 14, 384, "v1"),
  "ViT-SO400M-16-SigLIP-i18n-256": _siglip(
    "SO400M", 16, 256, "i18n", text_projection="none"
  ),
  # SigLIP 2's of fixed resolution.
  "ViT-B-32-SigLIP2-256": _siglip("B", 32, 256, "v2"),
  "ViT-B-16-SigLIP2": _siglip("B", 16, 224, "v2"),
  "ViT-B-16-SigLIP2-256": _siglip("B", 16, 256, "v2"),
  "ViT-B-16-SigLIP2-384": _siglip("B", 16, 384, "v2"),
  "ViT-B-16-SigLIP2-512": _siglip("B", 16, 512, "v2"),
  "ViT-L-16-SigLIP2-256": _siglip("L", 16, 256, "v2"),
  "ViT-L-16-SigLIP2-384": _siglip("L", 16, 384, "v2"),
  "ViT-L-16-SigLIP2-512": _siglip("L", 16, 512, "v2"),
  "ViT-SO400M-14-SigLIP2": _siglip("SO400M", 14, 224, "v2"),
  "ViT-SO400M-14-SigLIP2-378": _siglip("SO400M", 14, 378, "v2"),
  "ViT-SO400M-16-SigLIP2-256": _siglip("SO400M", 16, 256, "v2"),
  "ViT-SO400M-16-SigLIP2-384": _siglip("SO400M", 16, 384, "v2"),
  "ViT-SO400M-16-SigLIP2-512": _siglip("SO400M", 16, 512, "v2"),
  "ViT-gopt-16-SigLIP2-256": _siglip("gopt", 16, 256, "v2"),
  "ViT-gopt-16-SigLIP2-384": _siglip("gopt", 16, 384, "v2"),
  # Small enough to train on a CPU in minutes, with CLIP's own vocabulary.
  "tiny-rn": {
    "embed_dim": 64,
    "image": _TINY_RESNET,
    "text": _TINY_TEXT,
  },
  "tiny-vit": {
    "embed_dim": 64,
    "image": _vit(32, 8, width=128, depth=3, heads=4),
    "text": _TINY_TEXT,
  },
  "tiny-cbow": {
    "embed_dim": 64,
    "image": _TINY_RESNET,
    "text": {
      "kind": "cbow",
      "context_length": 16,
      "vocab_size": _VOCAB_SIZE,
      "width": 64,
    },
  },
}
