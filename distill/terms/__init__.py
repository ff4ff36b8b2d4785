"""Terms of a recipe's loss: their inputs, their losses and their table."""
