"""A page in the browser for a model: classify, search, compare, runs.

What a tab does is a plain function of a module here, which knows no Gradio:
`classifying`, `searching`, `comparing` and `watching`. `tabs` gives what they
find as HTML, `page` lays it out with Gradio (the extra `app`), `guard` stands
before all of it and lets through only what the page needs, and `server` runs
both.
"""
