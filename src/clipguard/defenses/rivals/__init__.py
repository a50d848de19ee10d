"""Published defences, re-implemented from their papers: one file a method, shared parts beside them."""
