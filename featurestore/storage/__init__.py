"""Files of a lake on disks and in buckets, and the locks that guard them."""
