"""Cards of teachers: all facts that decide an encoder's numbers."""
