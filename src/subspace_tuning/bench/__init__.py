"""Speed and memory of training steps: every method against the frozen floor, peft's own version and full tuning.

The *frozen floor* is the same model and batch with all weights frozen except the head's, and the gradient propagated
from the loss to the embeddings' output: the least that any method which changes the model from within can cost.
"""
