"""The study as pages: claims, results, executed notebooks, people, tables."""
