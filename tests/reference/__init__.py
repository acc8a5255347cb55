"""What the reference implementation gave, and what its numbers were made from, rebuilt from seeds."""
