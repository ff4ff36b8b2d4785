"""What of a slide is tissue: slidelake's own methods, and a user's model."""
