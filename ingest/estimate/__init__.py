"""What an ingest and an extract of many slides would take, from a few that were looked at."""
