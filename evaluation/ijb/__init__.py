"""IJB-B and IJB-C, by templates."""
