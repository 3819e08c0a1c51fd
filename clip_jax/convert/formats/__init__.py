"""The formats, one file each.

Tables of tensor names are in the language of `engine/names.py`, rows of config
fields in that of `engine/fields.py`.
"""
