"""Pictures: what a user gives as one, opened; and those behind URLs, fetched."""
