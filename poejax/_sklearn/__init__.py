"""What stands behind the scikit-learn face; it is imported by `poejax.sklearn` only."""
