"""Members of the `norm` slot, one file and one source each. They are found by their file's name."""
