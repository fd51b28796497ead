"""Pictures, pages and text of token sets and their trees."""
