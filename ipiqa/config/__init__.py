"""From YAML files and key=value changes to checked settings."""
