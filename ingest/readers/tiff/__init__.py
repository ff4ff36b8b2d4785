"""Slides in TIFF files: their images, tiles, OME-XML, and the native reader of JPEG tiles."""
