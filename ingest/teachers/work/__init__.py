"""The work of an extract: units of rows, the queue that shares them out, their decoded tiles."""
