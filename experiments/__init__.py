import training  # noqa: F401  before torch, see there
