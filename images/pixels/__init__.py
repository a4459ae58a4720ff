"""Picture bytes: what they are, and the threads that decode and encode them."""
