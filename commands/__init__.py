"""The subcommands of `slidelake`: each parses options, calls one package and prints the answer."""
