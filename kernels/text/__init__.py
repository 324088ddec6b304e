"""Text to word ids: splitting, lower-casing, numbering."""
