"""The version of this package, on which nothing else here depends."""

__version__ = "0.1.0"
