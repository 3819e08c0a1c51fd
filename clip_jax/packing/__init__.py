"""Packed text: several captions in one row of tokens."""
