"""Results: numbers, their provenance, and how they compare."""
