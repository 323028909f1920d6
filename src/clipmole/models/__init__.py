"""Tensor -> logit: the ViT tower, the MoLE adapter around its MLPs, the detector, and their files."""
