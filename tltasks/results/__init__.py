"""What happened: numbers and provenance, and how they compare."""
