"""Any model a user can name, returning `SegmentationOutput`."""
