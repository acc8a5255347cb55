"""Images and prompts -> scores, with what was trained elsewhere."""
