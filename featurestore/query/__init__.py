"""Questions to a lake: SQL and lazy frames, pushed down to Lance, and nearest tiles."""

from featurestore.query.answers import answer_bytes, answer_format, write_answer

__all__ = [
    "answer_bytes",
    "answer_format",
    "write_answer",
]
