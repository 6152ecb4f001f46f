"""What Python code uses: a cache of any model's logits on any data set, and a data set of both."""
