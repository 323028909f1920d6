"""Networks and their weights: the ViT tower, the MoLE adapter in it, and the directories that hold both.

In: a name, a directory, a batch of normalised crops. Out: a network, logits. It knows nothing of image files.
"""
