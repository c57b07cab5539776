"""Keys and values of context frames that stay: where they can be kept, and the prefill without them."""
