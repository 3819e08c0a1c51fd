"""What each verb does: a function calls one part of the library.

The table of verbs imports a module here when its verb is run, so that `--help`
and usage errors come at once.
"""
