"""Commands that read other tools' files into a lake, and write a lake as such files."""
