"""From predictions, table and splits to results: one schema, one writer, one reader."""
