"""Commands that query, check, repair and copy a lake."""
