"""Results of runs and evaluations, read back from files.

`report_files` draws them as pictures and one page; `card` writes a model card,
and `push` uploads it to the HuggingFace Hub with the model.
"""
