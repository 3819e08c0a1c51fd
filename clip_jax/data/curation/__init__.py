"""Training sets from crawls: filters, duplicates, and the paper's balance.

Section 2.2 of the paper: a pair is taken if its text has one of 500,000
queries, and of each query at most 20,000 pairs. MetaCLIP (arXiv 2309.16671)
describes the procedure: match substrings, count, and sample each query's pairs
independently.

`survey.py` reads every record once, in processes or by `beam_runner.py`, and
`findings.py` keeps what it finds. From that `curate.py` balances
(`queries.py`, `matching.py`, `balancing.py`), `filtering.py` applies `rules.py`
and `dedupe.py` drops what is there twice (`likeness.py`).
`making.py` makes a list of queries: `corpus.py` reads texts, with
`wikipedia.py` and `wordnet.py`, and `counting.py` counts their words.
"""
