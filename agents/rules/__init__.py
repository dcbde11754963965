"""Pure functions: no I/O, `now` is an argument."""
