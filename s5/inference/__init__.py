"""A trained network in use from Python: prediction, preparation of images, robustness."""
