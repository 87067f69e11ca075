"""Numbers from papers, as CSV with their source; data of the package ``cab.published``."""
