"""What studies share: runs, folders, data, recipes, scores and figures."""
