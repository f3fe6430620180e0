"""Functions that several losses share."""
