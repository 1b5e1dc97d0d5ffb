"""The folder of the runtime, which shareatt-export finds by the name of this package. It holds no Python code."""
