"""What happens to a record: one file a hop, pure rules under `rules/`."""
