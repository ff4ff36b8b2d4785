"""Files of weights: finding them, and filling networks from them."""
