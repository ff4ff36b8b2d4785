"""Who is trained on, who decides, who is tested: folds, sites, split files."""
