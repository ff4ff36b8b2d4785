"""The jobs of a cluster: what is sent, what travels with it, what comes back, and their list."""
