"""Measurements of the curation rules: `python -m tests.curation` prints the tables of docs/curation.md."""
