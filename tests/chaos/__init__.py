"""Breaks the running system from a seeded schedule and accounts for every record afterwards. `make chaos`."""
