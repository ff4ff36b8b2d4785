"""Networks of cards whose trunk is timm's and whose head is another's."""
