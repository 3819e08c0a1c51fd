"""What a source holds, in numbers: `clip-jax data stats`.

`examine.py` looks at a record, `scripts.py` at the letters of a caption, and
`summary.py` makes numbers of what was found; `clip_jax/results/data_page.py`
draws them.
"""
