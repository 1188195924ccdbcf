"""Training code of the models that the repository ships."""
