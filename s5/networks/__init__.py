"""Networks as data: the layers, the grammar of lines, a user's own code."""
