"""The margin softmax over sampled classes: Partial FC."""
