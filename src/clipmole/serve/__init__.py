"""The server: a page for people with an image, an HTTP API for programs. Start it with `server.serve`.

In: uploaded images, and one detector. Out: the page, JSON, metrics. It knows nothing of training or of data sets.
"""

TOKEN_VARIABLE = "CLIPMOLE_TOKEN"
"""The environment variable with the token that clients must send."""
