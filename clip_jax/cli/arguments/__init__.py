"""The arguments of each verb and their checks; quick to import."""
