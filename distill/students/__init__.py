"""Students: networks of pixels or of features, how they are kept and exported."""
