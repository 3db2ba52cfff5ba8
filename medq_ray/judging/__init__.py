"""The judge of descriptions and comparisons, which evaluation, annotation and benchmarks ask; floor 3."""
