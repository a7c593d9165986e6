"""Speed and memory of training steps: every method against the frozen floor, peft's own version and full tuning.

The *frozen floor* is the same model and batch with all weights frozen but the head's, where the gradient flows from the
embeddings' output to the loss: what no method that changes the model from within can do without.
"""
