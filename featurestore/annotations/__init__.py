"""Users' own columns: of tiles in the features tables, of slides and patients in tables.

`annotate` writes them, `model` says what they are, `registry` where they stand.
"""
