"""Balanced training sets from large ones, as the paper made its own.

Section 2.2 of the paper: a pair is taken if its text has one of 500,000
queries, and of each query at most 20,000 pairs. MetaCLIP (arXiv 2309.16671)
describes the procedure: match substrings, count, and sample each query's pairs
independently.

`queries.py` reads the list, `matching.py` finds queries in captions,
`balancing.py` decides which pairs stay, `curate.py` does it to a source.
`making.py` makes a list of queries: `corpus.py` reads texts, with
`wikipedia.py` and `wordnet.py`, and `counting.py` counts their words.
"""
