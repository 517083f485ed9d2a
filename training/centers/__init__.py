"""The class centres of a rank's slice, and where they lie."""
