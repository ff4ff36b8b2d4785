"""The files `roots.json` and `lake.json`, and snapshots: the table versions of a lake."""
