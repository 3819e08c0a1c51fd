"""The functions that run the verbs, by calls of the library.

The table of verbs imports a module here only when its verb is run, so that
`--help` and usage errors appear at once.
"""
