"""WebDataset shards of tiles, and the index of each."""

from featurestore.shards.tar_shards import check_shard

__all__ = [
    "check_shard",
]
