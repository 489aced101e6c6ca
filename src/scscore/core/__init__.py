"""The engine in pure torch; it knows nothing of AnnData."""
