"""The format `hub`: columns of a cohort as plain Parquet and cards, at any URL of fsspec."""
