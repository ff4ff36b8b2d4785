"""Writers of other tools' files: one module per tool, and their shared helpers."""
