"""Reading a lake for training: bags, pairs of magnifications, and streams of tiles."""
