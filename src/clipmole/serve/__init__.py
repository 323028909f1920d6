"""The server: a page for the person with one image, an HTTP API for the program. Start it with `server.serve`."""

TOKEN_VARIABLE = "CLIPMOLE_TOKEN"
"""Of the environment: the token that clients must send."""
