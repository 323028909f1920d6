"""The server: a page for people with an image, an HTTP API for programs. Start it with `server.serve`."""

TOKEN_VARIABLE = "CLIPMOLE_TOKEN"
"""Of the environment: the token that clients must send."""
