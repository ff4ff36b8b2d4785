"""Terms of a recipe's loss: what each reads and which loss it takes."""
