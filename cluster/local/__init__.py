"""Work in child processes of this machine: apart from each other, and without a Ray."""
