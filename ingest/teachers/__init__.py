"""Teachers: from a name to columns of features."""
