"""Co-occurrence within a sentence, and the information gain it gives every word."""
