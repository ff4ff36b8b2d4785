"""Networks of slide encoders: torch modules of one slide's tiles, with bounded memory."""
