"""How a frozen dataclass becomes the options of a command, and the options that commands share."""
