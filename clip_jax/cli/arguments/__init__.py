"""What each verb takes: arguments and their checks, light to import."""
