"""Whole models: geometries, what of memory they take, and files of random weights to try them on."""
