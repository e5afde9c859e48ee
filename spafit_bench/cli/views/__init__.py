"""What is drawn on the terminal: plans, comparisons, runs, progress."""
