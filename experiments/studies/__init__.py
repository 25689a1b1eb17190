"""Studies: one question, a grid of simulations, a document."""
