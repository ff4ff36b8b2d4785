"""Attention of many slides as files of a folder, with a page that lists them."""
