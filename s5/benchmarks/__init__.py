import s5.training  # noqa: F401  before torch, see there
