"""The built-in commands that are not part of the core; each is loaded when it is called."""
