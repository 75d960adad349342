"""Claims, measured: one script for each, with public tools alone."""
