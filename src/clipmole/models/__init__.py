"""Networks and their weights: the ViT tower, the MoLE adapter in it, and the directories that hold both.

In: the name or directory of a detector; crops. Out: a network; logits. It knows nothing of image files.
"""
