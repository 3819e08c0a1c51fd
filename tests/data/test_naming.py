"""Names with dots: which dot ends the key."""

import pytest

from clip_jax.data.sources import naming


def _keys(names):
  return [part and part.key for part in naming.split_all(names)]


def _named(*suffixes, stems):
  return [f"{stem}.{suffix}" for stem in stems for suffix in suffixes]


PHOTOS = [f"photo {i}.{j} final" for i in range(2) for j in (5, 7)]


@pytest.mark.parametrize(
  ("names", "keys"),
  [
    # A known suffix behind the first dot ends the key, as ever.
    (["a.jpg", "d.e/a.TXT", "a.json", "a.cls"], ["a", "d.e/a", "a", "a"]),
    (["a", "a.mp4", ".a.jpg", ".jpg", "d/._a.jpg"], [None] * 5),
    # Keys with dots.
    (
      _named("jpg", "txt", stems=PHOTOS),
      [photo for photo in PHOTOS for _ in range(2)],
    ),
    (["v1.0_1.jpg", "v1.0_2.jpg"], ["v1.0_1", "v1.0_2"]),
    # A caption is never given to another key's image.
    (
      ["photo 0.5 a.jpg", "photo 0.7 b.txt", *_named("jpg", "txt", stems="xy")],
      ["photo 0.5 a", "photo 0.7 b", "x", "x", "y", "y"],
    ),
    # Suffixes with dots.
    (
      _named("input.jpg", "outputs.txt", stems=["s0", "s1"]),
      ["s0", "s0", "s1", "s1"],
    ),
    (["d/s0.input.jpg", "d/s0.outputs.txt"], ["d/s0", "d/s0"]),
    (_named("jpg", "caption.txt", stems="ab"), ["a", "a", "b", "b"]),
    (
      _named("left.jpg", "right.jpg", "txt", stems="ab"),
      ["a", "a", "a", "b", "b", "b"],
    ),
    # What a complete sample has besides.
    (_named("jpg", "txt", "mask.png", stems="ab"), [*"aa", None, *"bb", None]),
    (["a.jpg", "a.txt", "b.jpg", "b.txt", "b.mask.png"], [*"aabb", None]),
    (
      _named("in.jpg", "in.txt", "out.txt", stems="ab"),
      ["a.in", "a.in", None, "b.in", "b.in", None],
    ),
    # Both kinds in one shard.
    (
      [*_named("in.jpg", "out.txt", stems="ab"), "c.5.jpg", "c.5.txt"],
      ["a", "a", "b", "b", "c.5", "c.5"],
    ),
  ],
)
def test_the_key_ends_where_the_names_of_the_shard_say(names, keys):
  assert _keys(names) == keys


def test_suffixes_say_what_a_part_is():
  kinds = [naming.split(f"a.{s}").kind for s in ("JP2", "json", "heic", "cls")]
  assert kinds == [
    naming.IMAGE,
    naming.JSON,
    naming.UNREAD_IMAGE,
    naming.LABEL,
  ]
