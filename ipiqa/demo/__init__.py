"""The demo: rendered scenes, their database, tiny encoders, and the commands that make them."""
