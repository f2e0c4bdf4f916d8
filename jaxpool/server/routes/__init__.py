"""The endpoints, by what they take."""
