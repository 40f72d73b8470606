"""Pictures and measures of what a model does."""
