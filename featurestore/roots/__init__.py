"""The files `roots.json` and `lake.json`, and snapshots: which versions of tables make a lake."""
