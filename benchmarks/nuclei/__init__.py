"""A binary example from folder to int8 file: nuclei in microscopy pictures."""
