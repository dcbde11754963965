"""Does training on the hardest k teach more than a random k? The experiment of `make evidence`."""
