"""Training: recipes, the steps, evaluation, saved states, and several processes."""
