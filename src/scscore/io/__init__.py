"""Between AnnData and the engine: readers, representations, slot names and model files."""
