"""How fast training and inference are, beside the pipeline that the project started from."""
