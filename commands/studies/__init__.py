"""Commands that train and test models on features, and show what they found."""
