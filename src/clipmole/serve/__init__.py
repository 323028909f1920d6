"""The server: a page for the person with one image, an HTTP API for the program. Start it with `runner.serve`."""
