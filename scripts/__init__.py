"""What the repository needs besides the package: run these from its root."""
