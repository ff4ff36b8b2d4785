"""The text and the small page by which a lake and results show themselves in a notebook."""
