"""What a run leaves on disk, and how networks are built from it."""
