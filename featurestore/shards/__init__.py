"""WebDataset shards of tiles, and the index of each."""
