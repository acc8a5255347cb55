"""The workbench: every contestant on every database under one protocol, each in a run folder of its own."""
