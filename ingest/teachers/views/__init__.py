"""What an encoder gets of a row: its field of view, read from the tiles of one or another mpp."""
