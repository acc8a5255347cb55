"""The demo: rendered scenes, their database, tiny encoders."""
