"""A synthetic cohort with known truth, and a small real slide, to try slidelake on."""
