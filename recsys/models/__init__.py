"""Recommenders, one a file: a Config, a class, and MODEL naming it. Found by file name."""
