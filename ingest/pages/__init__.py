"""The contact sheet of an ingest, and pictures of slides."""
