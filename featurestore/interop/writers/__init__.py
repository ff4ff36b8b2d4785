"""Writers of other tools' files: one module a tool, and what they share."""
