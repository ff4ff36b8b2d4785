"""Commands that cut slides into tiles and run teachers on tiles."""
