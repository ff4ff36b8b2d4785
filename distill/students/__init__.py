"""Students: networks of pixels or of features, their tasks, and the files of each."""
