"""Where records come from: a family, one member a file."""
