"""Several captions in one row of tokens: where they lie, how they are read."""
