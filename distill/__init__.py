"""How one learns from the other: recipe, data, losses, objective, loop, evaluation, report."""
