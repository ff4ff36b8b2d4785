"""Who is in a cohort: tables of labels, names of slides, outcomes."""
