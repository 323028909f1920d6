"""CLIP ViT-B/16's image tower in int8: data for clipmole, and no code."""
