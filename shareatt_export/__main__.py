"""`python -m shareatt_export` is `shareatt-export`."""

from .cli.main import main

main()
