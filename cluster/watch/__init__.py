"""What others may watch of a job: metrics, events in the log, and a call when it fails."""
