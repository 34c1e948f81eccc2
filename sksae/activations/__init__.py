"""Hidden states of transformers, and the rows they come from."""
