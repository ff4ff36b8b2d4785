"""The parts of the `slidelake` command: options in, one call of a package, words out."""
