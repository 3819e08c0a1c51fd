"""The examples at the end of `clip-jax VERB --help`."""

_TRAIN = "train --config configs/demo.py --workdir runs/demo"

EXAMPLES = {
  "train": (
    _TRAIN,
    "train --config configs/finetune.py --workdir runs/pets "
    "--config.init.model=runs/demo --config.data.train=folder:pets",
    "train --config configs/vit_b32.py --workdir runs/mine "
    "--config.data.train=csv:pairs.csv --config.batch_size=512",
  ),
  "plan": (
    "plan --config configs/demo.py",
    "plan --config configs/vit_b32.py --topology v5e:4x4 --suggest",
  ),
  "doctor": (
    "doctor",
    "doctor --config configs/vit_b32.py --config.data.train=csv:pairs.csv",
  ),
  "eval": (
    "eval runs/demo --task zero_shot --data builtin:two_digits/unseen",
    "eval runs/mine --task retrieval --data csv:pairs.csv --json",
    "eval runs/demo --task linear_probe --data builtin:digits",
    "eval runs/demo --task zero_shot --data builtin:digits "
    "--search-templates templates.txt",
    "eval runs/demo --task few_shot --data builtin:digits --shots 1,4,16",
    "eval runs/demo --task robustness --data builtin:digits/test",
    "eval runs/mine --task groups --data folder:faces --groups faces.csv",
    "eval ViT-B-32.pt --suite paper27 --data-root ~/data",
  ),
  "report": (
    "report runs/demo",
    "report runs/first runs/second results --out comparison",
  ),
  "card": (
    "card runs/demo",
    "card runs/mine --reports results --license mit --out README.md",
  ),
  "push": (
    "push runs/mine my-name/my-clip --license mit --dry-run",
    "push runs/mine my-name/my-clip --to huggingface --private",
  ),
  "classify": (
    'classify runs/demo photo.png --labels "zero one,one zero"',
    "classify hf-hub:openai/clip-vit-base-patch32 *.jpg --labels labels.txt "
    '--template "a photo of a {}."',
  ),
  "embed": (
    "embed runs/demo --data builtin:two_digits/unseen --out index",
    "embed runs/mine --data images:pictures --out index --dtype float16",
    "embed runs/mine --data arrayrecord:prepared --out index --distributed",
  ),
  "search": (
    'search index "a photo of the number three four" -k 5',
    "search index --image photo.png --json",
    "search index --export index.faiss",
    'search index.faiss "a photo of the number three four"',
  ),
  "app": (
    "app runs/demo",
    "app runs/mine --index index --runs runs --port 8000",
  ),
  "convert": (
    "convert ViT-B-32.pt models/b32 --to clip-jax",
    "convert runs/mine models/hf --to huggingface --dry-run",
  ),
  "verify": (
    "verify ViT-B-32.pt models/b32",
    "verify ViT-B-32.pt models/b32 --float64 --examples 8",
  ),
  "models": (
    "models",
    "models --filter siglip2 --max-parameters 400M --format open-clip",
  ),
  "data inspect": (
    "data inspect 'wds:shards/{00000..00331}.tar'",
    "data inspect 'csv:pairs.csv?root=pictures' --json",
  ),
  "data prepare": (
    "data prepare csv:pairs.csv prepared --drop-bad",
    "data prepare folder:pictures prepared --max-pixels 100000000",
    "data prepare wds:a.tar small --shortest-side 256 --workers 8",
  ),
  "data curate": (
    "data curate csv:pairs.csv balanced --queries words.txt --max-per-query 20",
    "data curate csv:pairs.csv balanced --queries words.txt --size 100000 "
    "--workers 8",
  ),
  "data filter": (
    "data filter csv:pairs.csv clean --min-words 3 --max-aspect 3",
    "data filter csv:pairs.csv clean --score-model ViT-B-32.pt "
    "--keep-share 0.3",
  ),
  "data dedupe": (
    "data dedupe csv:pairs.csv single --against folder:test",
    "data dedupe csv:pairs.csv single --by exact,near,semantic "
    "--model ViT-B-32.pt",
  ),
  "data mix": (
    "data mix wds:a.tar csv:pairs.csv --weights 2,1 --first 6",
    "data mix csv:en.csv csv:fi.csv --temperature 3 --examples 1000000 "
    "--out mixed --workers 8",
  ),
  "data stats": (
    "data stats csv:pairs.csv --out look --workers 8",
    "data stats builtin:digits/test --decode --json",
  ),
  "data queries": (
    "data queries enwiki.xml.bz2 wordnet:/usr/share/wordnet queries.txt",
    "data queries csv:pairs.csv queries.txt --min-count 20",
  ),
  "data doctor": (
    "data doctor --suite all --data-root ~/data",
    "data doctor --suite cifar10,food101 --data-root ~/data --json",
  ),
  "completion": (
    "completion bash > ~/.local/share/bash-completion/completions/clip-jax",
    "completion fish > ~/.config/fish/completions/clip-jax.fish",
  ),
}


def in_words(verb: str) -> str:
  """Returns the examples of a verb, as the text that ends its help.

  Args:
    verb: a verb, or a verb and an action, such as "data inspect". A verb that
      has actions shows the first example of each.
  """
  shown = EXAMPLES.get(verb) or [
    first for name, (first, *_) in EXAMPLES.items() if name.startswith(verb)
  ]
  return "\n".join(["examples:", *(f"  clip-jax {x}" for x in shown)])


def to_begin() -> str:
  """Returns the text that ends the help of the command itself."""
  first = "\n".join(
    f"  clip-jax {EXAMPLES[verb][0]}" for verb in ("train", "classify")
  )
  return f"to begin:\n{first}\n\n`clip-jax VERB --help` says more."
