"""Other networks as data: layers, the grammar of lines, and code of the user's."""
