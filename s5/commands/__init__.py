"""The commands of `python -m s5 NAME`: each parses its options and then imports the library."""
