"""Questions to a lake: SQL and lazy frames, pushed down to Lance, and nearest tiles."""
