"""`python -m shareatt_export` is `shareatt-export`."""

from .cli import main

main()
