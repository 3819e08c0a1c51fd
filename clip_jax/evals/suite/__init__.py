"""The suite: many data sets by name, each measured as its protocol says.

`paper27.json`, `robustness.json`, `retrieval.json` and `more.json` are its
tables, `assets/suite_prompts.json` has names and prompts of the classes, and
`assets/wordnet_names.json` what else sources call those of ImageNet.
"""
